"""Norms of all kinds and places, parallel parts, learned positions, scale and softcap: start and training."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support.cover import covering, rest_slow
from support.models import CONFIGS, V, tiny_ids, tiny_model, variant

from adaptive_lm.train.model import LossConfig, ModelConfig, Transformer, training_loss
from adaptive_lm.train.model.block import Levels
from adaptive_lm.train.model.norm import LayerNorm, RMSNorm
from adaptive_lm.train.optim.optimizer import OptimizerConfig, Optimizers, split_parameters

STARTS = ("layer_norm", "post", "sandwich", "parallel", "learned_positions", "olmo2", "gemma2", "gpt2", "neox")
NEW = [name for name in CONFIGS if name.startswith(STARTS)]
BEFORE, AFTER = ("attention_norm", "ffn_norm"), ("attention_post_norm", "ffn_post_norm")


@pytest.mark.parametrize("place", ["pre", "post", "sandwich"])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_a_block_has_the_norms_of_its_place_and_the_weights_of_their_kind(place: str, kind: str) -> None:
    model = Transformer(variant(norm=kind, norm_place=place))
    names = [*(BEFORE if place != "post" else ()), *(AFTER if place != "pre" else ())]
    parts = ["weight", "bias"] if kind == "layer" else ["weight"]
    own = {key for key in model.state_dict() if key.startswith("layers.1.") and key.split(".")[2].endswith("norm")}
    assert own == {f"layers.1.{name}.{part}" for name in names for part in parts}
    assert isinstance(model.norm, LayerNorm if kind == "layer" else RMSNorm)
    assert {f"norm.{part}" for part in parts} <= set(model.state_dict())


@pytest.mark.parametrize("place", ["post", "sandwich"])
def test_norms_of_outputs_start_small_in_place_of_the_matrices_whose_scale_they_cancel(place: str) -> None:
    torch.manual_seed(0)
    D, F, L = 64, 48, 4
    config = variant({"expert_dim": F, "shared_expert_dim": F}, dim=D, num_layers=L, norm_place=place)
    weights = Transformer(config).state_dict()
    silent = 1 / (8 * (2 * L) ** 0.5)
    assert all((weights[f"layers.1.{name}.weight"] == torch.tensor(silent)).all() for name in AFTER)
    scales = {"attention.o.weight": D**-0.5, "moe.down": F**-0.5, "moe.shared.down.weight": F**-0.5}
    for name, scale in scales.items():
        assert weights[f"layers.1.{name}"].std().item() == pytest.approx(scale, rel=0.15), name
    assert (weights["norm.weight"] == 1).all()


@pytest.mark.parametrize("place", ["pre", "post", "sandwich"])
def test_every_layer_adds_little_at_the_start(place: str) -> None:
    torch.manual_seed(0)
    model = Transformer(variant(norm_place=place, num_layers=6, vocab_size=512, dim=64)).eval()
    with torch.no_grad():
        rms = model(tiny_ids(), measures=True).residual_rms
    assert all(abs(value - 1) < 0.15 for value in rms)


@pytest.mark.parametrize("tied", [False, True])
def test_a_scaled_embedding_starts_at_the_size_of_the_others_and_positions_as_large(tied: bool) -> None:
    torch.manual_seed(0)
    more: dict[str, Any] = {"vocab_size": 512, "dim": 64, "tie_embeddings": tied}
    model = Transformer(variant(attention={"positions": "learned"}, embedding_scale=8.0, **more))
    assert model.learned_positions is not None
    weights = model.state_dict()
    assert weights["embedding.weight"].std().item() == pytest.approx(0.02 if tied else 1 / 8, rel=0.1)
    assert weights["learned_positions"].shape == (32, 64)
    assert weights["learned_positions"].std().item() == pytest.approx(0.02 * 8 if tied else 1.0, rel=0.1)
    with torch.no_grad():
        ids = tiny_ids()
        expected = 8 * weights["embedding.weight"][ids] + weights["learned_positions"][: ids.shape[1]]
        torch.testing.assert_close(model.embed(ids), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", rest_slow(NEW, covering({name: CONFIGS[name] for name in NEW})))
def test_a_few_steps_lower_the_loss_and_move_every_weight(name: str) -> None:
    torch.manual_seed(0)
    model = Transformer(CONFIGS[name]).train()
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizers = Optimizers(model, OptimizerConfig(lr=0.02, adamw_lr=0.01))
    ids = tiny_ids(batch=8)
    targets, counted, losses = (ids * 3 + 1) % V, torch.ones_like(ids, dtype=torch.bool), []
    for _ in range(12):
        out = model(ids)
        loss, parts = training_loss(model, out, targets, counted, LossConfig())
        optimizers.zero_grad()
        loss.backward()
        optimizers.step()
        model.observe(out)
        losses.append(parts["cross_entropy"].item())
    assert losses[-1] < 0.8 * losses[0]
    still = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    assert not still


def test_norms_biases_and_learned_positions_go_with_adamw_and_have_no_decay() -> None:
    config = variant(norm="layer", norm_place="sandwich", attention={"positions": "learned"})
    model = Transformer(config)
    matrices, rest = split_parameters(dict(model.named_parameters()))
    assert not any("norm" in name or "learned_positions" in name for name in matrices)
    assert {"learned_positions", "norm.bias", "layers.0.ffn_post_norm.bias"} <= set(rest)
    groups = Optimizers(model, OptimizerConfig(weight_decay=0.1)).all[-1].param_groups
    decayed = {id(weight) for group in groups if group["weight_decay"] for weight in group["params"]}
    assert not decayed & {id(weight) for weight in rest.values()}


def test_a_softcap_bounds_all_logits_of_exits_too() -> None:
    model, cap = tiny_model("sandwich_project"), CONFIGS["sandwich_project"].logits_softcap
    with torch.no_grad():
        out = model(tiny_ids())
        for hidden in out.exit_hidden.values():
            raw = model.head(hidden)
            torch.testing.assert_close(model.logits(hidden), cap * torch.tanh(raw / cap), rtol=0, atol=0)
            assert raw.abs().max() > model.logits(hidden).abs().max()
    assert out.logits.abs().max() <= cap


def test_the_loss_of_an_exit_is_that_of_its_capped_logits() -> None:
    config = variant(depth={"exit_layers": (1,)}, logits_softcap=0.5)
    model, ids, counted = Transformer(config), tiny_ids(), torch.ones(2, 17, dtype=torch.bool)
    with torch.no_grad():
        model.head.weight.mul_(100)
        out = model(ids)
        _, parts = training_loss(model, out, ids, counted, LossConfig(exit_loss=1.0))
    # between logits of -0.5 and 0.5 no probability is far from 1 / V
    assert abs(parts["exit_loss"].item() - math.log(V)) < 1.0
    assert out.logits.abs().max() > 0.49


def test_parallel_parts_read_one_state() -> None:
    model = tiny_model("parallel_project")
    block, x = model.blocks()[0], torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    alive, rotary = torch.ones(1, 5, dtype=torch.bool), model.rotary[0](5)
    limits = model.default_thresholds()
    own = Levels(limits.router_top_p[0], limits.depth_threshold[0], limits.head_top_p[0])
    with torch.no_grad():
        out, _ = block(x, alive, rotary, own)
        attended = block.attention(block.attention_norm(x), rotary, None, None, own.head_top_p).out
        assert block.moe is not None
        update, _ = block.moe(block.ffn_norm(x).flatten(0, 1), alive.flatten(), own.router_top_p)
    torch.testing.assert_close(out, x + attended + update.view(x.shape), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention": {"positions": ["learned", "rope"]}}, "learned positions are added to the embedding"),
        ({"norm": "batch"}, "'rms' or 'layer'"),
        ({"norm_place": "middle"}, "'pre', 'post' or 'sandwich'"),
        ({"logits_softcap": -1}, "greater than or equal to 0"),
        ({"embedding_scale": 0}, "greater than 0"),
        ({"embedding_scale": True}, "expected a number"),
    ],
)
def test_wrong_values_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate({"num_layers": 2, **fields})
