"""Chunked forms of the recurrence whose transition is a diagonal and a matrix of rank one. Everything is float32.

    S_t = S_{t-1} diag(w_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T;   o_t = S_t r_t

B batch, T time, H heads, K width of keys, V width of values, C tokens of a chunk, n chunks, R = n B H chunks of all
heads. `recurrence.py` has the form that goes token by token.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LONGEST_CHUNK = 32
"""Most tokens of a chunk that the mixers take, whatever `recurrence.chunk` says: longer ones are slower on a CPU, since
the work in a chunk grows with its length (decision 0047), and decays of `rwkv7` in a chunk stay above exp(-20)."""
LARGEST_EXPONENT = 80.0
"""Largest decay of a chunk, as a logarithm, that `chunked_delta` may multiply out: float32 ends at exp(88)."""


def chunked_delta(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    a: Tensor,
    b: Tensor,
    chunk: int,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence with a decay for each key component, by chunks: -> (B, T, H, V), state (B, H, V, K).

    In a chunk that starts at the state S_0, with g_t the sum of log w up to t, the vectors u_t = S_{t-1} a_t are the
    rows of U in

        (I - A_ab) U = A_ak V + (a e^{g_{t-1}}) S_0^T,     A_xy[t, s] = sum over K of x_t y_s e^{h_t - g_s}

    where h_t is g_{t-1} and s < t for x = a, h_t is g_t and s <= t for x = r. Then o = A_rb U + A_rk V + (r e^g) S_0^T.
    What does not depend on S_0 is computed for all chunks at once; only the states go from chunk to chunk.

    Source: Peng et al. 2025 (arXiv 2503.14456), Yang et al. 2024 (arXiv 2412.06464). Departs from them: a chunk's
    effect on a state is one matrix product.

    Args:
        r: (B, T, H, K).
        k: (B, T, H, K).
        v: (B, T, H, V).
        log_w: (B, T, H, K), logarithm of the decays. e^{h_t - g_s} is computed as the product e^{h_t} e^{-g_s}, so C
            times the largest |log w| must stay below LARGEST_EXPONENT.
        a: (B, T, H, K).
        b: (B, T, H, K).
        chunk: C.
        state: (B, H, V, K) before the first token; None for zeros.
    """
    state = _first(k, v) if state is None else state
    time, sizes = k.shape[1], (v.shape[3], k.shape[3])
    chunk = min(chunk, time)
    r, k, v, log_w, a, b = (_chunks(x, chunk) for x in (r, k, v, log_w, a, b))  # (R, C, K or V)
    g = log_w.cumsum(1)
    remaining, inverse = g.exp(), (-g).exp()  # (R, C, K)
    a, r, b, k = a * (g - log_w).exp(), r * remaining, b * inverse, k * inverse
    scores = (torch.cat([a, r], 1) @ torch.cat([b, k], 1).mT) * _earlier(k, chunk)  # (R, 2C, 2C)
    of_b, of_k = scores.split(chunk, 2)
    a_b, r_b = of_b.split(chunk, 1)  # (R, C, C)
    a_v, r_v = (of_k @ v).split(chunk, 1)  # (R, C, V)
    # U is the first V columns, and the others times S_0^T
    u = solve(-a_b, torch.cat([a_v, a], 2))  # (R, C, V + K)
    written, turned = (u.mT @ b).split(sizes, 1)  # (R, V, K) and (R, K, K)
    last = remaining[:, -1:]  # (R, 1, K)
    update = (written + v.mT @ k) * last
    transition = (turned + torch.eye(sizes[1], dtype=k.dtype, device=k.device)) * last
    before, state = carry(transition, update, state)
    own, of_state = (r_b @ u).split(sizes, 2)
    out = own + r_v + (r + of_state) @ before.mT
    return _tokens(out, state, time), state


def chunked_gated_delta(
    r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, beta: Tensor, chunk: int, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the gated delta rule by chunks: -> (B, T, H, V), state (B, H, V, K).

        S_t = w_t S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T

    This is the recurrence with a = -w beta k and b = k, whose update is beta v k^T. What is removed and what is written
    have the same key, so their sums are the rows of one matrix E:

        (I + L) E = beta (V - e^g K S_0^T),   L[t, s] = beta_t (k_t . k_s) e^{g_t - g_s} for s < t

    The decay is one number per head: e^{g_t - g_s} is computed from differences, and no decay is too strong for that.

    Source: Yang et al. 2024 (arXiv 2412.06464), section 3.3. Departs from it as `chunked_delta` does.

    Args:
        r: (B, T, H, K).
        k: (B, T, H, K).
        v: (B, T, H, V).
        log_w: (B, T, H), logarithm of the decays.
        beta: (B, T, H).
        chunk: C.
        state: (B, H, V, K) before the first token; None for zeros.
    """
    state = _first(k, v) if state is None else state
    time, sizes = k.shape[1], (v.shape[3], k.shape[3])
    chunk = min(chunk, time)
    r, k, v, beta = (_chunks(x, chunk) for x in (r, k, v, beta[..., None]))  # (R, C, K, V or 1)
    g = _chunks(log_w[..., None], chunk).cumsum(
        1, dtype=torch.float64
    )  # (R, C, 1): a sum may be -1000, and a step -0.01
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=k.device).triu(1)
    decays = (g - g.mT).to(k.dtype).masked_fill(later, float("-inf")).exp()  # (R, C, C)
    remaining, to_end = g.to(k.dtype).exp(), (g[:, -1:] - g).to(k.dtype).exp()
    of_k, of_r = (torch.cat([beta * k, r], 1) @ k.mT).split(chunk, 1)  # (R, C, C)
    # E is the first V columns, less the others times S_0^T
    given = torch.cat([beta * v, beta * remaining * k], 2)
    e = solve(of_k * decays, given)  # (R, C, V + K)
    update, turned = (e.mT @ (k * to_end)).split(sizes, 1)  # (R, V, K) and (R, K, K)
    transition = remaining[:, -1:] * torch.eye(sizes[1], dtype=k.dtype, device=k.device) - turned
    before, state = carry(transition, update, state)
    own, of_state = ((of_r * decays) @ e).split(sizes, 2)
    out = own + (r * remaining - of_state) @ before.mT
    return _tokens(out, state, time), state


def _first(k: Tensor, v: Tensor) -> Tensor:
    """Return the state before the first token."""
    batch, _, heads, keys = k.shape
    return v.new_zeros(batch, heads, v.shape[3], keys)


def _chunks(x: Tensor, chunk: int) -> Tensor:
    """Cut x (B, T, H, K) into chunks (R, C, K). Zeros fill the last one; they leave a state as it is."""
    missing = -x.shape[1] % chunk
    x = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
    return x.unflatten(1, (-1, chunk)).permute(1, 0, 3, 2, 4).flatten(0, 2)  # (n, B, H, C, K)


def _tokens(out: Tensor, state: Tensor, time: int) -> Tensor:
    """Join chunks (R, C, V) to tokens (B, T, H, V), for a state (B, H, V, K)."""
    out = out.unflatten(0, (-1, *state.shape[:2])).permute(1, 0, 3, 2, 4)  # (B, n, C, H, V)
    return out.flatten(1, 2)[:, :time]


def _earlier(like: Tensor, chunk: int) -> Tensor:
    """Return 1 where row t of a|r reads what row s of b|k wrote, else 0, (2C, 2C): s < t for a, s <= t for r."""
    ones = like.new_ones(chunk, chunk)
    return torch.cat([ones.tril(-1), ones.tril()]).repeat(1, 2)


def solve(lower: Tensor, given: Tensor) -> Tensor:
    """Solve (I + L) X = Y, where L is what of `lower` (R, C, C) is below the diagonal: Y (R, C, M) -> X (R, C, M)."""
    out: Tensor = _Solve.apply(lower, given)  # type: ignore[no-untyped-call]  # torch's own
    return out


class _Solve(torch.autograd.Function):
    """X = T Y with T = (I + L)^-1 by substitution; dY = T^T G, dL = -dY X^T below the diagonal.

    T is kept, so that the backward pass solves no second system.
    """

    @staticmethod
    def forward(ctx: Any, lower: Tensor, given: Tensor) -> Tensor:
        identity = torch.eye(lower.shape[2], dtype=lower.dtype, device=lower.device).expand_as(lower)
        inverse = torch.linalg.solve_triangular(lower, identity, upper=False, unitriangular=True)
        out = inverse @ given
        ctx.save_for_backward(inverse, out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        inverse, out = ctx.saved_tensors
        of_given = inverse.mT @ gradient
        return (of_given @ out.mT).neg_().tril_(-1), of_given


def carry(transition: Tensor, update: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Carry the states from chunk to chunk: the next is `state @ transition + update`.

    Args:
        transition: (R, K, K), the chunks in order.
        update: (R, V, K).
        state: (B, H, V, K) before the first chunk.

    Returns:
        The states before each chunk, (R, V, K), and the one after the last, (B, H, V, K).
    """
    rows = state.shape[0] * state.shape[1]
    states: Tensor = _carry(
        transition.unflatten(0, (-1, rows)), update.unflatten(0, (-1, rows)), state.flatten(0, 1)
    )  # (n + 1, B H, V, K)
    return states[:-1].flatten(0, 1), states[-1].view(state.shape)


@torch.library.custom_op("adaptive_lm::carry", mutates_args=())
def _carry(transition: Tensor, update: Tensor, state: Tensor) -> Tensor:
    """Return all states, (n + 1, B H, V, K). An operator, so that torch.compile does not unroll the loop."""
    number = len(update)
    states = state.new_empty(number + 1, *state.shape)
    states[0] = state
    for i in range(number):
        torch.baddbmm(update[i], states[i], transition[i], out=states[i + 1])
    return states


@_carry.register_fake
def _(transition: Tensor, update: Tensor, state: Tensor) -> Tensor:  # noqa: ARG001  # the operator's signature
    return state.new_empty(len(update) + 1, *state.shape)


@torch.library.custom_op("adaptive_lm::carry_backward", mutates_args=())
def _carry_backward(gradient: Tensor, transition: Tensor) -> Tensor:
    """Return the gradients of all states (n + 1, B H, V, K), each with what comes back from those after it."""
    sums = gradient.clone(memory_format=torch.contiguous_format)
    for i in reversed(range(len(transition))):
        sums[i].baddbmm_(sums[i + 1], transition[i].mT)
    return sums


@_carry_backward.register_fake
def _(gradient: Tensor, transition: Tensor) -> Tensor:  # noqa: ARG001  # the operator's signature
    return gradient.new_empty(gradient.shape)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # torch.library's own signature
    ctx.save_for_backward(inputs[0], output)


def _differentiate(ctx, gradient):  # type: ignore[no-untyped-def]  # torch.library's own signature
    transition, states = ctx.saved_tensors
    sums = _carry_backward(gradient, transition)
    return states[:-1].mT @ sums[1:], sums[1:], sums[0]


_carry.register_autograd(_differentiate, setup_context=_keep)
