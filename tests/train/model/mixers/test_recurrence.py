"""The recurrence of mixers: chunks as token by token, states that go on, gradients, and rows that skip."""

from typing import Any

import numpy as np
import pytest
import torch
from reference.mixers import Mixer as PlainMixer
from support.models import variant
from torch import Tensor

from adaptive_lm.train.model.mixers.compaction import compact, in_place
from adaptive_lm.train.model.mixers.convolution import Convolve, ShortConvolution
from adaptive_lm.train.model.mixers.recurrence import chunked, recurrent

TOLERANCE = 2e-4
"""Of the spread of the outputs, in float32."""
B, H, K, V = 2, 3, 4, 5


def inputs(time: int, shared: bool = False, strength: float = 0.5, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Draw r, k, v and the logarithms of decays; `strength` is how fast the state forgets."""
    draw = torch.Generator().manual_seed(time)
    heads = 1 if shared else H
    r, k = (torch.randn(B, time, heads, K, generator=draw, dtype=dtype) for _ in range(2))
    v = torch.randn(B, time, H, V, generator=draw, dtype=dtype)
    log_w = -strength * torch.rand(B, time, H, generator=draw, dtype=dtype)
    return [r, k, v, log_w]


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * expected.std().item())


@pytest.mark.parametrize(("time", "chunk"), [(1, 4), (4, 4), (5, 4), (16, 4), (17, 5), (17, 64), (130, 64)])
@pytest.mark.parametrize("shared", [False, True])
def test_chunks_are_the_recurrence(time: int, chunk: int, shared: bool) -> None:
    one, other = recurrent(*inputs(time, shared)), chunked(*inputs(time, shared), chunk)
    assert_close(other[0], one[0])
    assert_close(other[1], one[1])


@pytest.mark.parametrize("time", [3, 8, 17])
def test_constant_decays_are_equal_decays(time: int) -> None:
    r, k, v, _ = inputs(time)
    log_w = torch.tensor([-0.01, -0.3, -2.0])
    expected = recurrent(r, k, v, log_w.expand(B, time, H))
    for found in (recurrent(r, k, v, log_w), chunked(r, k, v, log_w, 5)):
        assert_close(found[0], expected[0])
        assert_close(found[1], expected[1])


def test_a_state_goes_on_where_it_stopped() -> None:
    whole = inputs(23)
    expected = recurrent(*whole)
    for form in (recurrent, lambda *args, state=None: chunked(*args, 4, state)):
        head, state = form(*(x[:, :9] for x in whole))
        tail, state = form(*(x[:, 9:] for x in whole), state=state)
        assert_close(torch.cat([head, tail], 1), expected[0])
        assert_close(state, expected[1])


@pytest.mark.parametrize("strength", [0.0, 5.0, 60.0, 1e4])
def test_decays_of_any_strength_stay_finite(strength: float) -> None:
    """Even where the state forgets all at once: exp(-1e4) is 0 in float32, and its inverse would be infinite."""
    tensors = [x.requires_grad_() for x in inputs(40, strength=strength)]
    out, state = chunked(*tensors, 16)
    assert_close(out.detach(), recurrent(*inputs(40, strength=strength))[0])
    (out.square().sum() + state.sum()).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in tensors)


def test_a_state_that_lasts_is_exact_after_much_was_forgotten() -> None:
    """The first half forgets almost all at each token, the second half nothing: no large sums may cancel."""
    r, k, v, log_w = inputs(512)
    log_w = torch.cat([log_w[:, :256] * 100, log_w[:, 256:] * 1e-4], 1)
    exact = recurrent(*(x.double() for x in (r, k, v, log_w)))
    assert_close(chunked(r, k, v, log_w, 16)[0].double(), exact[0])


def test_the_general_recurrence_is_that_of_the_reference() -> None:
    """Decays of each key, and a transition that is not diagonal."""
    time, draw = 11, torch.Generator().manual_seed(0)
    r, k, a, b = (0.5 * torch.randn(B, time, H, K, generator=draw) for _ in range(4))
    v, w = torch.randn(B, time, H, K, generator=draw), torch.rand(B, time, H, K, generator=draw)
    out, state = recurrent(r, k, v, w.log(), a, b)
    config = variant(dim=H * K, num_heads=H, num_kv_heads=1, mixers="rwkv7")
    for sequence in range(B):
        plain = PlainMixer({}, config, 0, np.float64)
        for t in range(time):
            for head in range(H):
                one = [x[sequence, t, head].double().numpy() for x in (r, k, v, w, a, b)]
                np.testing.assert_allclose(out[sequence, t, head], plain.recur(head, *one), atol=1e-5)
        np.testing.assert_allclose(state[sequence], plain.states, atol=1e-5)


@pytest.mark.parametrize("constant", [False, True])
def test_gradients_are_finite_differences(constant: bool) -> None:
    r, k, v, log_w = (x[:1] for x in inputs(7, dtype=torch.float64))
    tensors = [x.requires_grad_() for x in (r, k, v, log_w[0, 0] if constant else log_w)]
    state = torch.randn(1, H, V, K, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *args: chunked(*args[:4], 3, args[4]), (*tensors, state), fast_mode=True)


@pytest.mark.parametrize("time", [1, 3, 9])
def test_gradients_of_the_convolution_are_those_of_finite_differences(time: int) -> None:
    """Also where a text is shorter than the convolution."""
    generator = torch.Generator().manual_seed(2)
    x, weight = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((2, time, 3), (3, 4))
    )
    assert torch.autograd.gradcheck(Convolve.apply, (x, weight))


def test_the_convolution_sees_the_last_tokens_and_the_current_one() -> None:
    convolution = ShortConvolution(3, 4, bias=True)
    with torch.no_grad():
        convolution.weight.copy_(torch.arange(12.0).view(3, 4) / 10)
        convolution.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    x = torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(1))
    out = convolution(x)
    for t in range(6):
        total = convolution.bias.clone()
        for back in range(min(t + 1, 4)):
            total += convolution.weight[:, 3 - back] * x[0, t - back]
        torch.testing.assert_close(out[0, t], torch.nn.functional.silu(total))


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_rows_that_run_move_to_the_front_and_back(share: float) -> None:
    draw = torch.Generator().manual_seed(2)
    x, present = torch.randn(3, 9, 2, generator=draw), torch.rand(3, 9, generator=draw) < share
    rows, order = compact(x, present)
    for sequence in range(3):
        running = present[sequence].nonzero().flatten()
        assert order[sequence, : len(running)].tolist() == running.tolist()
        assert torch.equal(rows[sequence, : len(running)], x[sequence, running])
    assert torch.equal(in_place(rows, present), torch.where(present[..., None], x, 0.0))


def test_the_gradient_of_a_row_goes_back_to_its_place() -> None:
    draw = torch.Generator().manual_seed(3)
    x, present = torch.randn(2, 7, 2, generator=draw).requires_grad_(), torch.rand(2, 7, generator=draw) < 0.5
    weights = torch.randn(2, 7, 2, generator=draw)
    rows, _ = compact(x, present)
    (in_place(rows.square(), present) * weights).sum().backward()
    expected: Any = torch.where(present[..., None], 2 * x * weights, 0.0)
    torch.testing.assert_close(x.grad, expected)
