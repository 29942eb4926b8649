"""Mixers with a state inside the model; tests that all models share compare them with the plain one."""

import copy
import math
from typing import Any

import pytest
import torch
from support.models import busy_thresholds, even_thresholds, season, tiny_ids, tiny_model, variant
from torch.utils._python_dispatch import TorchDispatchMode

from adaptive_lm.train.model import LossConfig, ModelConfig, Transformer, training_loss
from adaptive_lm.train.model.continued import contradictions
from adaptive_lm.train.model.linear import Linear
from adaptive_lm.train.model.mixers.build import MIXERS
from adaptive_lm.train.model.mixers.mamba2 import RATES, Mamba2
from adaptive_lm.train.model.mixers.mixer import STEPS, Mixer

aten = torch.ops.aten
TOLERANCE = 2e-4
"""Of the spread of the outputs, in float32."""


def mixer_of(kind: str, **fields: object) -> Mixer:
    """Build a seasoned mixer in training mode."""
    model = Transformer(variant(num_layers=1, mixers=kind, **fields))
    season(model, seed=3)
    mixer = model.blocks()[0].mixer
    assert mixer is not None
    return mixer.train()


def states(time: int = 23) -> torch.Tensor:
    return torch.randn(2, time, 32, generator=torch.Generator().manual_seed(time))


def tables(kind: str, time: int = 23, **fields: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    model = Transformer(variant(num_layers=1, mixers=kind, **fields))
    return model.rotary[0](time) if len(model.rotary) else None


def results(mixer: Mixer, present: torch.Tensor | None, kind: str) -> list[torch.Tensor]:
    """Return the output and all gradients."""
    x = states().requires_grad_()
    out = mixer(x, present, tables(kind))
    (out * states(23).cos()).sum().backward()
    gradients = [weight.grad for weight in mixer.parameters()]
    assert all(gradient is not None for gradient in gradients)
    return [out.detach(), x.grad, *gradients]  # type: ignore[list-item]  # none is None


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("skips", [False, True], ids=["all", "skips"])
def test_chunks_train_as_token_by_token(kind: str, skips: bool) -> None:
    mixer = mixer_of(kind, recurrence={"chunk": 4})
    plain = copy.deepcopy(mixer)
    plain.plain = True
    present = torch.rand(2, 23, generator=torch.Generator().manual_seed(1)) < 0.6 if skips else None
    for found, expected in zip(results(mixer, present, kind), results(plain, present, kind), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=TOLERANCE * expected.std(correction=0).item())


@pytest.mark.parametrize("kind", MIXERS)
def test_gradients_of_a_mixer_are_finite_differences(kind: str) -> None:
    """Of its input and all its weights, with tokens that skip it and more than one chunk."""
    mixer = mixer_of(kind, dim=8, num_heads=2, recurrence={"chunk": 3, "rank": 2, "conv": 3}).double()
    x = torch.randn(1, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    present = torch.tensor([[True, True, False, True, True, False, True]])
    rotary = tables(kind, 7, dim=8, num_heads=2)
    names = [name for name, _ in mixer.named_parameters()]

    def run(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.func.functional_call(
            mixer, dict(zip(names, weights, strict=True)), (x, present, rotary)
        )
        return out

    assert torch.autograd.gradcheck(run, (x, *mixer.parameters()), atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("kind", MIXERS)
def test_a_token_that_skips_leaves_no_trace(kind: str) -> None:
    """The others get what they would get without it, at their own positions; its own row is 0."""
    mixer, rotary = mixer_of(kind, recurrence={"chunk": 4}), tables(kind)
    present = torch.rand(2, 23, generator=torch.Generator().manual_seed(1)) < 0.6
    out = mixer(states(), present, rotary)
    for sequence in range(2):
        running = present[sequence].nonzero().flatten()
        turned = None if rotary is None else (rotary[0][running], rotary[1][running])
        alone = mixer(states()[sequence : sequence + 1, running], None, turned)
        torch.testing.assert_close(out[sequence, running], alone[0], rtol=0, atol=1e-5)
    assert not out[~present].any()
    other = torch.where(present[..., None], states(), 7.0)
    assert torch.equal(mixer(other, present, rotary), out)


@pytest.mark.parametrize("kind", MIXERS)
def test_a_later_token_changes_nothing_before_it(kind: str) -> None:
    mixer, x = mixer_of(kind, recurrence={"chunk": 8}), states()
    changed = x.clone()
    changed[:, 13] += 1
    one, other = mixer(x, None, tables(kind)), mixer(changed, None, tables(kind))
    assert torch.equal(one[:, :13], other[:, :13])
    assert (one[:, 13:] != other[:, 13:]).any(-1).all()


class Products(TorchDispatchMode):
    """Collects the dtypes of the results of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operator(*args, **(kwargs or {}))
        if operator in (aten.mm.default, aten.bmm.default, aten.addmm.default):
            self.dtypes.append(out.dtype)
        return out


@pytest.mark.parametrize("kind", MIXERS)
def test_autocast_rounds_the_matrices_and_not_the_recurrence(kind: str) -> None:
    mixer, products = mixer_of(kind), Products()
    with torch.autocast("cpu", torch.bfloat16), products:
        out = mixer(states(), None, tables(kind))
    matrices = [module for module in mixer.modules() if isinstance(module, Linear)]
    assert products.dtypes.count(torch.bfloat16) == len(matrices)
    assert torch.float32 in products.dtypes
    exact = mixer(states(), None, tables(kind))
    assert 0 < (out - exact).abs().max() < 0.05 * exact.std() + 0.05


def test_mamba2_starts_with_documented_steps_and_decays() -> None:
    torch.manual_seed(0)
    mixer = (
        Transformer(variant(num_layers=1, mixers="mamba2", num_heads=64, num_kv_heads=2, head_dim=8)).blocks()[0].mixer
    )
    assert isinstance(mixer, Mamba2)
    step, rate = torch.nn.functional.softplus(mixer.dt_bias), mixer.A_log.exp()
    for values, (least, most) in ((step, STEPS), (rate, RATES)):
        assert least * 0.999 < values.min() < least + 0.2 * (most - least)
        assert most - 0.3 * (most - least) < values.max() < most * 1.001
    assert step.log().mean().item() == pytest.approx(sum(math.log(each) for each in STEPS) / 2, abs=0.5)
    assert (mixer.D == 1).all()


@pytest.mark.parametrize("kind", MIXERS)
def test_a_layer_is_nearly_silent_at_the_start(kind: str) -> None:
    """As attention is, so that each block begins as a small step."""
    torch.manual_seed(0)
    model = Transformer(variant(num_layers=2, mixers=kind, dim=64, context_length=64))
    mixer = model.blocks()[0].mixer
    assert mixer is not None
    x = torch.randn(2, 64, 64)
    out = mixer(x, None, model.rotary[0](64) if len(model.rotary) else None)
    assert 0 < out.std() < 0.2


@pytest.mark.parametrize("kind", MIXERS)
def test_a_model_of_states_learns_to_repeat(kind: str) -> None:
    """Predicting the token before the last one takes a state: the newest token alone tells nothing about it."""
    torch.manual_seed(0)
    model = Transformer(variant(num_layers=2, mixers=kind, ffn={"routing": "dense", "dim": 32}))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-2)
    losses = []
    for step in range(100):
        ids = torch.randint(8, (16, 16), generator=torch.Generator().manual_seed(step))
        targets = ids.roll(1, 1)
        counted = torch.ones_like(ids, dtype=torch.bool)
        counted[:, 0] = False
        loss, _ = training_loss(model, model(ids), targets, counted, LossConfig())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if losses[-1] < 0.4:
            break
    assert losses[-1] < 0.4 < math.log(8) < losses[0]


def test_averages_of_heads_count_the_layers_that_choose_them() -> None:
    model, ids = tiny_model("retnet_hybrid_none"), tiny_ids()
    with torch.no_grad():
        out = model(ids, busy_thresholds(model.config))
    layer = out.routing[2]
    assert [one.heads is not None for one in out.routing] == [False, False, True, False]
    assert layer.heads is not None
    expected = layer.heads.selected_heads.sum() / layer.runs.sum()
    assert out.usage()["heads_per_token"] == pytest.approx(expected.item())
    assert layer.windows is not None
    assert out.usage()["window"] == pytest.approx((layer.windows.sizes.sum() / layer.runs.sum()).item())


def test_controllers_watch_the_layers_that_have_them() -> None:
    model = copy.deepcopy(tiny_model("retnet_hybrid_none")).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.observe(model(tiny_ids()))
    changed = {name for name, buffer in model.named_buffers() if not torch.equal(before[name], buffer)}
    assert any(name.startswith("layers.2.attention.head_router") for name in changed)
    assert not any("mixer" in name for name in changed)


@pytest.mark.parametrize("kind", MIXERS)
def test_a_hybrid_layer_is_the_layer_of_a_uniform_model(kind: str) -> None:
    """A list of equal mixers is that mixer, bit for bit, and attention in the list is that of a model of attention."""
    uniform = Transformer(variant(mixers=kind))
    season(uniform, seed=1)
    listed = Transformer(variant(mixers=(kind,) * 4))
    listed.load_state_dict(uniform.state_dict())
    with torch.no_grad():
        assert torch.equal(uniform(tiny_ids()).logits, listed(tiny_ids()).logits)
    attention, hybrid = Transformer(variant()), Transformer(variant(mixers=(kind, "attention", "attention", kind)))
    assert {name for name in hybrid.state_dict() if name.startswith("layers.1.")} == {
        name for name in attention.state_dict() if name.startswith("layers.1.")
    }


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("conv", [1, 4])
def test_states_have_the_stated_shapes(kind: str, conv: int) -> None:
    config = variant(mixers=("attention", kind, "attention", kind), recurrence={"conv": conv, "head_dim": 8})
    mixer = Transformer(config).blocks()[1].mixer
    assert mixer is not None
    shapes = config.state_shapes(1)
    assert config.state_shapes(0) == {}
    assert shapes["state"] == (4, 8, 8)
    weights = dict(mixer.named_parameters())
    assert ("conv" in shapes) == ("conv.weight" in weights or kind == "rwkv7")
    if "conv.weight" in weights:
        channels, width = weights["conv.weight"].shape
        assert shapes["conv"] == (channels, width - 1)


def test_weights_fix_the_mixers_and_their_sizes_but_not_the_chunks() -> None:
    own = variant(mixers="mamba2")
    assert not contradictions(own, variant(mixers="mamba2", recurrence={"chunk": 128}))
    assert list(contradictions(own, variant(mixers="mamba2", recurrence={"conv": 3}))) == ["recurrence.conv"]
    assert list(contradictions(own, variant(mixers=("mamba2", "attention") * 2))) == ["mixers"]


def test_everything_off_is_a_model_of_attention() -> None:
    config = ModelConfig()
    assert config.has_attention
    assert not config.has_states
    assert all(config.state_shapes(layer) == {} for layer in range(config.num_layers))
    model = tiny_model("top_p")
    assert all(block.mixer is None and block.attention is not None for block in model.blocks())
    assert not any("mixer" in name for name in model.state_dict())


def test_an_exit_leaves_the_states_alone() -> None:
    """Tokens that left early do not change what later tokens read, whatever they would have written."""
    model = tiny_model("retnet_project")
    limits = busy_thresholds(model.config)
    with torch.no_grad():
        out = model(tiny_ids(), limits)
        whole = model(tiny_ids(), even_thresholds(4))
    assert (out.exit_layer >= 0).any()
    assert not torch.equal(out.logits, whole.logits)
