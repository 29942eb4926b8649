"""Optimizers: the weights and rate of each, and their state as named tensors."""

from typing import Any

import pytest
import torch
from torch import nn

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.model.config.model import ModelConfig
from adaptive_lm.train.model.linear import Linear
from adaptive_lm.train.model.mixers.build import MIXERS
from adaptive_lm.train.model.transformer import Transformer
from adaptive_lm.train.optim.muon import Muon
from adaptive_lm.train.optim.optimizer import OptimizerConfig, Optimizers, split_parameters

TINY: dict[str, Any] = {
    "vocab_size": 11, "context_length": 16, "dim": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1,
    "ffn": {"num_experts": 4, "expert_dim": 24},
}  # fmt: skip


def give_gradients(parameters: list[nn.Parameter], seed: int) -> None:
    torch.manual_seed(seed)
    for weight in parameters:
        weight.grad = torch.randn_like(weight)


def every_mechanism() -> Transformer:
    """Build a model that has every kind of weight."""
    return Transformer(ModelConfig.model_validate({
        **TINY, "num_layers": 3,
        "attention": {"positions": ["cope", "rope", "cope"], "max_positions": 8, "window": [0, 12, 0],
                      "window_kind": "learned", "window_least": 4, "qkv_bias": True, "o_bias": True},
        "heads": {"routing": "top_p", "shared_heads": 0, "controller": "learned"},
        "ffn": {**TINY["ffn"], "controller": "learned", "per_token": True},
        "depth": {"layers_share": 0.5, "per_token": True, "exit_layers": [0], "exit_criterion": "router"},
    }))  # fmt: skip


def test_muon_gets_the_matrices_of_the_blocks_and_adamw_everything_else() -> None:
    model = Transformer(ModelConfig.model_validate(TINY))
    matrices, rest = split_parameters(dict(model.named_parameters()))
    assert {"layers.0.moe.gate_up", "layers.1.moe.down", "layers.0.attention.o.weight"} <= set(matrices)
    assert {"embedding.weight", "head.weight", "norm.weight", "layers.0.moe.router.weight"} <= set(rest)
    assert not any("router" in name or "norm" in name for name in matrices)
    assert len(matrices) + len(rest) == len(list(model.parameters()))


@pytest.mark.parametrize("kind", MIXERS)
def test_decays_steps_and_convolutions_of_mixers_go_with_adamw_and_do_not_decay(kind: str) -> None:
    model = Transformer(ModelConfig.model_validate({**TINY, "mixers": kind}))
    matrices, rest = split_parameters(dict(model.named_parameters()))
    gates = (".a_proj", ".b_proj")  # one row per head, like routers
    linear = {name for name, module in model.named_modules() if isinstance(module, Linear) and ".mixer." in name}
    layers = {name for name in linear if not name.endswith(gates)}
    assert {name for name in matrices if ".mixer." in name} == {f"{name}.weight" for name in layers}
    small = {id(weight) for name, weight in rest.items() if ".mixer." in name}
    adamw = Optimizers(model, OptimizerConfig()).all[-1]
    for group in adamw.param_groups:
        assert group["weight_decay"] == 0
        small -= {id(weight) for weight in group["params"]}
    assert not small


def test_routers_thresholds_positions_and_all_of_one_dimension_go_with_adamw() -> None:
    model = every_mechanism()
    matrices, rest = split_parameters(dict(model.named_parameters()))
    parts = {name.split(".", 2)[-1] for name in matrices}
    assert parts == {"attention.q.weight", "attention.kv.weight", "attention.o.weight", "moe.gate_up", "moe.down"}
    assert {"layers.0.attention.q.bias", "layers.1.attention.kv.bias", "layers.2.attention.o.bias"} <= set(rest)
    expected = ["position_embedding", "head_router.weight", "moe.router.weight", "depth_router", "window_router",
                "level_logit", "per_token.weight", "exit_routers.0"]  # fmt: skip
    assert all(any(part in name for name in rest) for part in expected)
    optimizers = Optimizers(model, OptimizerConfig())
    assert isinstance(optimizers.all[0], Muon)  # which asserts that it is given nothing but matrices


def test_muon_takes_as_many_newton_schulz_steps_as_the_config_says() -> None:
    moved = []
    for steps in (5, 4, 4):
        torch.manual_seed(0)
        model = Transformer(ModelConfig.model_validate(TINY))
        give_gradients(list(model.parameters()), 1)
        Optimizers(model, OptimizerConfig(newton_schulz_steps=steps)).step()
        moved.append(model.state_dict()["layers.0.moe.gate_up"])
    assert torch.equal(moved[1], moved[2])
    assert not torch.equal(moved[0], moved[1])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["muon", "adamw", "lars", "sgd"])
def test_optimizers_restored_from_their_tensors_take_the_same_next_step(kind: str, bidirectional: bool) -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig.model_validate(TINY))
    twin = Transformer(ModelConfig.model_validate(TINY))
    config = OptimizerConfig.model_validate({"kind": kind, "bidirectional": bidirectional})
    first = Optimizers(model, config)
    give_gradients(list(model.parameters()), 1)
    first.step()
    second = Optimizers(twin, config)
    twin.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    second.load_state_tensors({name: value.clone() for name, value in first.state_tensors().items()})
    for each, optimizers in ((model, first), (twin, second)):
        give_gradients(list(each.parameters()), 2)
        optimizers.balance()
        optimizers.step()
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_state_of_another_model_is_refused() -> None:
    optimizers = Optimizers(Transformer(ModelConfig.model_validate(TINY)), OptimizerConfig())
    with pytest.raises(UserError, match=r"layers\.9\.moe\.down"):
        optimizers.load_state_tensors({"layers.9.moe.down.momentum_buffer": torch.zeros(1)})


def test_every_learning_rate_is_its_peak_times_the_factor() -> None:
    optimizers = Optimizers(Transformer(ModelConfig.model_validate(TINY)), OptimizerConfig(lr=0.02, adamw_lr=0.004))
    optimizers.set_rate(0.5)
    optimizers.set_rate(0.25)
    assert sorted(g["lr"] for one in optimizers.all for g in one.param_groups) == pytest.approx([0.001, 0.005])


@pytest.mark.parametrize(
    ("given", "rate", "decay"),
    [
        ({}, 0.03, 0.1),
        ({"kind": "lars"}, 0.003, 0.1),
        ({"kind": "sgd"}, 0.1, 1e-4),
        ({"kind": "sgd", "weight_decay": 0.02}, 0.1, 0.02),
        ({"kind": "lars", "lr": 0.5}, 0.5, 0.1),
    ],
)
def test_matrices_have_the_rate_and_decay_of_their_kind_unless_others_are_given(
    given: dict[str, Any], rate: float, decay: float
) -> None:
    config = OptimizerConfig.model_validate(given)
    matrices, rest = Optimizers(Transformer(ModelConfig.model_validate(TINY)), config).all
    assert [(group["lr"], group["weight_decay"]) for group in matrices.param_groups] == [(rate, decay)]
    assert [(group["lr"], group["weight_decay"]) for group in rest.param_groups] == [(0.012, 0.0)]
    assert OptimizerConfig.model_validate(config.model_dump()) == config  # what is stored says it


def test_adamw_alone_has_another_rate_and_decay_for_the_matrices() -> None:
    config = OptimizerConfig(kind="adamw", adamw_lr=0.01, adamw_matrix_lr=0.002, weight_decay=0.3)
    (one,) = Optimizers(Transformer(ModelConfig.model_validate(TINY)), config).all
    assert [(g["lr"], g["weight_decay"]) for g in one.param_groups] == [(0.01, 0.0), (0.002, 0.3)]


@pytest.mark.parametrize("kind", ["muon", "adamw", "lars", "sgd"])
def test_every_kind_moves_every_weight_at_its_own_rate(kind: str) -> None:
    model = Transformer(ModelConfig.model_validate(TINY))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizers = Optimizers(model, OptimizerConfig.model_validate({"kind": kind, "lr": 0.01, "weight_decay": 0.0}))
    give_gradients(list(model.parameters()), 1)
    optimizers.step()
    moved = {
        name: float((w.detach() - before[name]).norm() / before[name].norm()) for name, w in model.named_parameters()
    }
    assert all(share > 1e-4 for share in moved.values())
    if kind == "lars":  # the share of each matrix that a step moves is the rate itself
        assert moved["layers.0.attention.q.weight"] == pytest.approx(0.01, rel=1e-4)
    if kind == "sgd":
        change = model.get_parameter("layers.1.attention.o.weight") - before["layers.1.attention.o.weight"]
        gradient = model.get_parameter("layers.1.attention.o.weight").grad
        assert gradient is not None
        torch.testing.assert_close(change, -0.01 * gradient)


def test_bidirectional_rates_are_those_of_the_layers_and_come_back_to_their_peak() -> None:
    model = Transformer(ModelConfig.model_validate(TINY))
    optimizers = Optimizers(model, OptimizerConfig(bidirectional=True, lr=0.02, adamw_lr=0.004, target_norm=3.0))
    for name, weight in model.named_parameters():
        size = {"layers.0": 12.0, "layers.1": 0.75}.get(name[:8], 3e-9 if name.startswith("head") else 3.0)
        group = [p for n, p in model.named_parameters() if n[:8] == name[:8] or not name.startswith("layers")]
        numbers = sum(p.numel() for p in group) if name.startswith("layers") else weight.numel()
        weight.grad = torch.full_like(weight, size / numbers**0.5)
    optimizers.set_rate(0.5)
    optimizers.balance()
    assert optimizers.factors == pytest.approx(
        {"layers.0": 0.5, "layers.1": 2.0, "head": 3.0, "embedding": 1.0, "rest": 1.0}, rel=1e-3
    )
    assert optimizers.record() == pytest.approx({"lr_factor_least": 0.5, "lr_factor_most": 3.0}, rel=1e-3)
    rates = {(type(one), group["layer"]): group["lr"] for one in optimizers.all for group in one.param_groups}
    assert rates[Muon, "layers.0"] == pytest.approx(0.02 * 0.5 * 0.5, rel=1e-3)
    assert rates[Muon, "layers.1"] == pytest.approx(0.02 * 0.5 * 2.0, rel=1e-3)
    assert rates[torch.optim.AdamW, "layers.1"] == pytest.approx(0.004 * 0.5 * 2.0, rel=1e-3)
    optimizers.balance()  # the factors replace each other, they do not pile up
    rates = {(type(one), group["layer"]): group["lr"] for one in optimizers.all for group in one.param_groups}
    assert rates[Muon, "layers.1"] == pytest.approx(0.02 * 0.5 * 2.0, rel=1e-3)


def test_without_bidirectional_scaling_there_is_one_group_and_nothing_to_record() -> None:
    optimizers = Optimizers(Transformer(ModelConfig.model_validate(TINY)), OptimizerConfig())
    optimizers.balance()
    assert [len(one.param_groups) for one in optimizers.all] == [1, 1]
    assert optimizers.record() == {}


@pytest.mark.parametrize("given", [{"clip": "agc", "clip_norm": 0.5}, {"clip_percentile": 20}, {"clip_share": 0.1}])
def test_a_setting_of_another_way_to_clip_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="has no effect with clip"):
        OptimizerConfig.model_validate(given)
