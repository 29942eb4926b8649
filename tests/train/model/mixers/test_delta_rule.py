"""The chunked forms of the delta rule, compared with the recurrence token by token and with plain numpy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adaptive_lm.train.model.mixers.delta_rule import LARGEST_EXPONENT, carry, chunked_delta, chunked_gated_delta
from adaptive_lm.train.model.mixers.recurrence import recurrent
from adaptive_lm.train.model.mixers.rwkv7 import STRONGEST_DECAY

TOLERANCE = 2e-4
"""Largest difference between two forms of a recurrence in float32, as a share of the spread of the outputs."""
B, H, K, V = 2, 3, 8, 12
SHAPES = [(1, 64), (5, 1), (16, 16), (17, 16), (50, 16), (70, 64), (33, 8)]
"""Tokens, tokens of a chunk."""


def drawn(time: int, seed: int = 0, dtype: torch.dtype = torch.float32, width: int = K) -> dict[str, Tensor]:
    """Draw inputs of both rules as the mixers make them: keys and what is removed have length 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(B, time, H, *shape, generator=generator, dtype=dtype)

    kappa, rate = F.normalize(normal(width), dim=-1), normal(width).sigmoid()
    return {
        "r": normal(width),
        "k": normal(width),
        "v": normal(V),
        "unit": F.normalize(normal(width), dim=-1),
        "log_w": -STRONGEST_DECAY * (3 * normal(width) - 2).sigmoid(),
        "log_alpha": -F.softplus(3 * normal() - 2),
        "beta": normal().sigmoid(),
        "a": -kappa,
        "b": rate * kappa,
    }


def delta(x: dict[str, Tensor], chunk: int | None, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Run the rule with a decay for each component, by chunks or token by token."""
    inputs = [x[name] for name in ("r", "k", "v", "log_w", "a", "b")]
    return recurrent(*inputs, state=state) if chunk is None else chunked_delta(*inputs, chunk=chunk, state=state)


def gated(x: dict[str, Tensor], chunk: int | None, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Run the gated rule, by chunks or token by token."""
    r, k, v, log_w, beta = (x[name] for name in ("r", "unit", "v", "log_alpha", "beta"))
    if chunk is not None:
        return chunked_gated_delta(r, k, v, log_w, beta, chunk, state)
    return recurrent(r, k, beta[..., None] * v, log_w, -(log_w.exp() * beta)[..., None] * k, k, state)


RULES = pytest.mark.parametrize("rule", [delta, gated])


def assert_close(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], share: float = TOLERANCE) -> None:
    for name, left, right in zip(("out", "state"), one, other, strict=True):
        spread = float(right.std()) if right.numel() > 1 else 1.0
        assert left.shape == right.shape
        assert float((left - right).abs().max()) <= share * spread, name


@RULES
@pytest.mark.parametrize(("time", "chunk"), SHAPES, ids=[f"T{t}-C{c}" for t, c in SHAPES])
@pytest.mark.parametrize("starts", [False, True], ids=["zeros", "given"])
def test_chunks_give_what_the_recurrence_gives(rule, time: int, chunk: int, starts: bool) -> None:
    state = torch.randn(B, H, V, K, generator=torch.Generator().manual_seed(9)) if starts else None
    assert_close(rule(drawn(time), chunk, state), rule(drawn(time), None, state), 1e-5)


@RULES
def test_the_recurrence_gives_what_numpy_gives(rule) -> None:
    """One head of one sequence, as the formula is written, in float64."""
    x = drawn(9, dtype=torch.float64)
    out, state = rule(x, None)
    one = {name: value[1, :, 2].numpy() for name, value in x.items()}
    S, outputs = np.zeros((V, K)), []
    for t in range(9):
        if rule is delta:
            S = (
                S * np.exp(one["log_w"][t])
                + np.outer(S @ one["a"][t], one["b"][t])
                + np.outer(one["v"][t], one["k"][t])
            )
        else:
            k, beta = one["unit"][t], one["beta"][t]
            S = np.exp(one["log_alpha"][t]) * S @ (np.eye(K) - beta * np.outer(k, k)) + beta * np.outer(one["v"][t], k)
        outputs.append(S @ one["r"][t])
    np.testing.assert_allclose(out[1, :, 2], outputs, rtol=0, atol=1e-12)
    np.testing.assert_allclose(state[1, 2], S, rtol=0, atol=1e-12)


@RULES
@pytest.mark.parametrize("cut", [1, 16, 23])
def test_a_text_may_be_read_in_parts(rule, cut: int) -> None:
    x = drawn(40)
    first, state = rule({name: value[:, :cut] for name, value in x.items()}, 16)
    rest, state = rule({name: value[:, cut:] for name, value in x.items()}, 16, state)
    assert_close((torch.cat([first, rest], 1), state), rule(x, 16), 1e-5)


@RULES
def test_a_token_does_not_depend_on_those_after_it(rule) -> None:
    x, other = drawn(40), drawn(40, seed=1)
    changed = {name: torch.cat([value[:, :21], other[name][:, 21:]], 1) for name, value in x.items()}
    before, after = rule(x, 16)[0], rule(changed, 16)[0]
    assert torch.equal(before[:, :21], after[:, :21])
    assert not torch.equal(before[:, 21:], after[:, 21:])


@pytest.mark.slow
@RULES
@pytest.mark.parametrize("seed", [0, 1])
def test_ten_thousand_tokens_stay_within_the_tolerance(rule, seed: int) -> None:
    x = drawn(10_000, seed)
    assert_close(rule(x, 64 if rule is gated else 16), rule(x, None))


def test_the_strongest_decays_stay_in_range() -> None:
    """Every component decays as fast as it can, in chunks as long as a decay may be multiplied out."""
    x = drawn(130)
    x["log_w"] = torch.full_like(x["log_w"], -STRONGEST_DECAY)
    longest = int(LARGEST_EXPONENT / STRONGEST_DECAY)
    assert longest == 131
    for chunk in (16, 64, 128):
        assert_close(delta(x, chunk), delta(x, None), 2e-5)  # sums of 77 have an ulp of 8e-6


@pytest.mark.parametrize("strong", [-30.0, -300.0, -1e4])
def test_no_decay_of_the_gated_rule_is_too_strong(strong: float) -> None:
    """Tokens that forget everything stand among tokens that forget nearly nothing, whose decays keep their digits."""
    x = drawn(128)
    x["log_alpha"] = torch.full_like(x["log_alpha"], -0.01)
    x["log_alpha"][:, ::7] = strong
    assert_close(gated(x, 64), gated(x, None), 1e-5)
    x["log_alpha"].requires_grad_()
    gated(x, 64)[0].sum().backward()
    assert x["log_alpha"].grad is not None
    assert x["log_alpha"].grad.isfinite().all()


def test_equal_keys_that_are_replaced_whole_keep_their_digits() -> None:
    """The worst triangular system: each token replaces what the one before wrote, with beta 1 and no decay."""
    x = drawn(64)
    x["unit"] = F.normalize(torch.ones_like(x["unit"]), dim=-1)
    x["beta"], x["log_alpha"] = torch.ones_like(x["beta"]), torch.zeros_like(x["log_alpha"])
    out, state = gated(x, 64)
    assert_close((out, state), gated(x, None), 1e-5)
    last = x["v"][:, -1, ..., None] * x["unit"][:, -1, :, None]
    torch.testing.assert_close(state, last, rtol=0, atol=1e-5)


@RULES
def test_gradients_are_those_of_finite_differences(rule) -> None:
    generator = torch.Generator().manual_seed(3)
    x = {name: value[:1, :, :2].contiguous() for name, value in drawn(5, dtype=torch.float64, width=3).items()}
    state = torch.randn(1, 2, V, 3, generator=generator, dtype=torch.float64).requires_grad_()
    used = ("r", "k", "v", "log_w", "a", "b") if rule is delta else ("r", "unit", "v", "log_alpha", "beta")
    leaves = [x[name].requires_grad_() for name in used]

    def run(state: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
        return rule({**x, **dict(zip(used, given, strict=True))}, 2, state)

    assert torch.autograd.gradcheck(run, (state, *leaves), fast_mode=True)


@RULES
def test_gradients_of_both_forms_are_equal(rule) -> None:
    gradients = []
    for chunk in (16, None):
        x = {name: value.requires_grad_() for name, value in drawn(40).items()}
        out, state = rule(x, chunk)
        (out.square().sum() + state.square().sum()).backward()
        gradients.append({name: value.grad for name, value in x.items() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert float((gradient - other).abs().max()) <= TOLERANCE * float(other.std()), name


def test_the_states_are_carried_as_a_loop_carries_them() -> None:
    generator = torch.Generator().manual_seed(1)
    transition, update = (torch.randn(4 * B * H, n, K, generator=generator) for n in (K, V))
    state = torch.randn(B, H, V, K, generator=generator)
    before, last = carry(transition, update, state)
    for n in range(4):
        rows = slice(n * B * H, (n + 1) * B * H)
        assert torch.equal(before[rows], state.flatten(0, 1))
        state = torch.baddbmm(update[rows], state.flatten(0, 1), transition[rows]).view_as(state)
    assert torch.equal(last, state)
