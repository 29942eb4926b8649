"""RWKV-7 and the gated delta rule as mixers of a layer: sizes, first values, optimizer groups, gradients."""

import pytest
import torch
from support.cover import rest_slow
from support.models import season, variant

from adaptive_lm.train.model import Transformer
from adaptive_lm.train.model.mixers.delta_rule import LARGEST_EXPONENT, LONGEST_CHUNK
from adaptive_lm.train.model.mixers.gated_delta import GatedDelta
from adaptive_lm.train.model.mixers.mixer import Mixer
from adaptive_lm.train.model.mixers.rwkv7 import RWKV7, STRONGEST_DECAY
from adaptive_lm.train.optim.optimizer import split_parameters

KINDS = pytest.mark.parametrize("kind", ["gated_delta", "rwkv7"])


def model_of(kind: str, **top) -> Transformer:
    torch.manual_seed(0)
    return Transformer(variant(mixers=kind, **top))


def mixer_of(kind: str, **recurrence: int) -> Mixer:
    """Return the mixer of layer 1 of a seasoned model."""
    model = model_of(kind, recurrence=recurrence)
    season(model, 3)
    mixer = model.blocks()[1].mixer
    assert mixer is not None
    return mixer


def states(time: int = 45, seed: int = 2, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, time, 32, generator=torch.Generator().manual_seed(seed))


@KINDS
def test_a_layer_that_no_token_runs_gives_zeros_and_finite_gradients(kind: str) -> None:
    mixer, x = mixer_of(kind), states().requires_grad_()
    out = mixer(x, torch.zeros(2, 45, dtype=torch.bool), None)
    assert not out.any()
    out.sum().backward()
    assert x.grad is not None
    assert not x.grad.any()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in mixer.parameters())


def test_without_a_convolution_a_gated_layer_sees_earlier_tokens_only_in_its_state() -> None:
    model = model_of("gated_delta", recurrence={"conv": 1})
    mixer = model.blocks()[0].mixer
    assert isinstance(mixer, GatedDelta)
    assert mixer.conv is None
    assert model.config.state_shapes(0) == {"state": (4, 8, 8)}
    assert mixer(states(), None, None).isfinite().all()


@KINDS
@pytest.mark.parametrize("recurrence", [{"head_dim": 12}, {"head_dim": 1, "chunk": 3, "rank": 3}, {"conv": 8}])
def test_heads_may_have_a_width_of_their_own(kind: str, recurrence: dict[str, int]) -> None:
    model = model_of(kind, recurrence=recurrence)
    mixer = model.blocks()[0].mixer
    assert mixer is not None
    assert mixer(states(), None, None).shape == (2, 45, 32)
    width = recurrence.get("head_dim", 8)
    assert model.config.state_shapes(0)["state"] == (4, width, width)


@KINDS
def test_chunks_are_short_whatever_the_config_says(kind: str) -> None:
    """So that the decays of RWKV-7 stay in range."""
    chunks = {}
    for chunk in (8, 64, 4096):
        mixer = model_of(kind, recurrence={"chunk": chunk}).blocks()[0].mixer
        assert mixer is not None
        chunks[chunk] = mixer.chunk
    assert chunks == {8: 8, 64: LONGEST_CHUNK, 4096: LONGEST_CHUNK}
    assert LONGEST_CHUNK * STRONGEST_DECAY < LARGEST_EXPONENT


def test_the_gated_rule_starts_with_the_decays_of_its_authors() -> None:
    model = model_of("gated_delta", num_heads=32, num_kv_heads=2)
    for block in model.blocks():
        assert isinstance(block.mixer, GatedDelta)
        rates, steps = block.mixer.A_log.exp(), torch.nn.functional.softplus(block.mixer.dt_bias)
        assert rates.min() >= 1e-3
        assert 4 < rates.mean() < 12
        assert rates.max() <= 16
        assert steps.min() >= 0.99e-3
        assert steps.max() <= 0.101
        assert 0.003 < steps.log().mean().exp() < 0.03


def test_rwkv7_starts_with_the_values_of_its_authors() -> None:
    """Those of layer 0 of 4 and of the last, as the formulas of the authors' training code give them."""
    model = model_of("rwkv7")
    first, last = (model.blocks()[layer].mixer for layer in (0, 3))
    assert isinstance(first, RWKV7)
    assert isinstance(last, RWKV7)
    at = torch.arange(32) / 32
    torch.testing.assert_close(first.mu_r, 1 - at**0.2)
    torch.testing.assert_close(last.mu_k, 1 - at ** (0.7 / 4))
    torch.testing.assert_close(first.w0[[0, 31]], torch.tensor([-5.5 - 2.5, 0.5 + 2.5]))
    torch.testing.assert_close(
        last.w0[[8, 23]], -5.5 + 6 * (torch.tensor([8, 23]) / 31) ** 2 + torch.tensor([-2.5, 2.5])
    )
    torch.testing.assert_close(first.a0[[0, 31]], torch.tensor([-0.19 - 0.3 - 0.2, -0.19 + 0.3 + 0.2]))
    torch.testing.assert_close(first.norm.weight, torch.full((32,), 0.25**0.7))
    torch.testing.assert_close(last.norm.weight, torch.ones(32))
    for mixer in (first, last):
        assert not any(one.weight.any() for one in (mixer.w1, mixer.a1, mixer.g1))
        gram = mixer.w2.weight.T @ mixer.w2.weight
        torch.testing.assert_close(gram, 0.01 * torch.eye(len(gram)), rtol=0, atol=1e-6)
        assert mixer.k.weight.std().item() == pytest.approx(0.1 * 32**-0.5, rel=0.1)
        assert mixer.r.weight.std().item() == pytest.approx(32**-0.5, rel=0.1)


@KINDS
def test_every_weight_of_a_fresh_model_can_learn(kind: str) -> None:
    """After the first step nothing that multiplies a zero is left without a gradient."""
    model = model_of(kind)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        model.zero_grad()
        model(torch.arange(40).view(2, 20) % 29).logits.square().mean().backward()
        optimizer.step()
    mixer = model.blocks()[1].mixer
    assert mixer is not None
    idle = [name for name, weight in mixer.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not idle


@KINDS
def test_the_optimizer_of_matrices_gets_matrices_only(kind: str) -> None:
    model = model_of(kind)
    matrices, rest = split_parameters(dict(model.named_parameters()))
    prefix = "layers.1.mixer."
    of_matrices = {name.removeprefix(prefix) for name in matrices if name.startswith(prefix)}
    of_rest = {name.removeprefix(prefix) for name in rest if name.startswith(prefix)}
    if kind == "gated_delta":
        assert of_matrices == {"q.weight", "k.weight", "v.weight", "gate.weight", "o.weight"}
        assert of_rest == {"a_proj.weight", "b_proj.weight", "conv.weight", "A_log", "dt_bias", "norm.weight"}
    else:
        low = {f"{name}{number}.weight" for name in "wag" for number in (1, 2)}
        assert of_matrices == {"r.weight", "k.weight", "v.weight", "o.weight", *low}
        vectors = {"w0", "a0", "k_k", "k_a", "r_k", "norm.weight", "norm.bias"}
        assert of_rest == vectors | {f"mu_{name}" for name in "rwkvag"}


@pytest.mark.parametrize("kind", rest_slow(["gated_delta", "rwkv7"], ["rwkv7"]))
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_mixer_compiles_without_a_graph_break(kind: str) -> None:
    """With skipped tokens, outputs and gradients."""
    mixer = mixer_of(kind, chunk=8)
    present = torch.rand(2, 45, generator=torch.Generator().manual_seed(5)) < 0.6
    compiled = torch.compile(mixer, fullgraph=True, dynamic=False, backend="aot_eager")
    results = []
    for run in (mixer, compiled):
        x = states().requires_grad_()
        out = run(x, present, None)
        out.square().sum().backward()
        results.append((out, x.grad))
    torch.testing.assert_close(*results)
