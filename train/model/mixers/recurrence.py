"""The recurrence of all mixers with a state, in a plain form and in a chunked one. Everything is float32.

For each head, with the state S (V, K):

    S_t = S_{t-1} diag(w_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T;   o_t = S_t r_t

B batch, T time, H heads, K width of keys, V width of values, C tokens of a chunk, n chunks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def recurrent(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence token by token, as decoding does.

    Args:
        r: (B, T, H, K), or (B, T, 1, K) for all heads.
        k: As r.
        v: (B, T, H, V).
        log_w: Logarithm of the decays: (H,), (B, T, H) or (B, T, H, K).
        a: (B, T, H, K), with `b`; None without that term.
        b: (B, T, H, K).
        state: (B, H, V, K) before the first token; None for zeros.

    Returns:
        The outputs (B, T, H, V), and the state after the last token.
    """
    batch, time, heads, width = v.shape
    if log_w.ndim == 1:
        log_w = log_w.expand(batch, time, heads)
    w = (log_w if log_w.ndim == 4 else log_w[..., None]).exp()[:, :, :, None]  # (B, T, H, 1, K or 1)
    if state is None:
        state = v.new_zeros(batch, heads, width, k.shape[-1])
    outputs = []
    for t in range(time):
        following = state * w[:, t] + v[:, t, :, :, None] * k[:, t, :, None]
        if a is not None and b is not None:
            following = following + (state @ a[:, t, :, :, None]) * b[:, t, :, None]
        state = following
        outputs.append((state * r[:, t, :, None]).sum(-1))
    return torch.stack(outputs, 1), state


def chunked(
    r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, chunk: int, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the recurrence with one decay per head by chunks: -> outputs (B, T, H, V), state (B, H, V, K).

    With L_i the sum of log w over the tokens of the chunk up to i, and S the state before the chunk,

        o_i = e^{L_i} S r_i + sum over j <= i of e^{L_i - L_j} (k_j . r_i) v_j

    and the states of all chunks follow from those of each chunk alone in the same way, a chunk in place of a token.
    No exponent is greater than 0. Arguments are those of `recurrent`; log_w is (H,) or (B, T, H).

    Source: Mamba-2, Dao and Gu 2024 (arXiv 2405.21060), section 6 and listing 1.
    """
    batch, time, heads, width = v.shape
    chunk = min(chunk, time)
    r, k, v = (_chunks(x, chunk) for x in (r, k, v))  # (B, n, H or 1, C, K or V)
    number = v.shape[1]
    if log_w.ndim == 1:  # equal in all chunks; the state after a last chunk that is not full is found below
        logs = log_w[:, None].expand(heads, chunk)[None, None]  # (1, 1, H, C)
    else:
        logs = _chunks(log_w[..., None], chunk)[..., 0]  # (B, n, H, C)
    # In float64: a sum may be -1000 where a single step is -0.01.
    sums = logs.cumsum(-1, dtype=torch.float64)
    reached, total = sums.to(v.dtype).exp(), sums[..., -1].to(v.dtype)
    out = ((r @ k.mT) * _decays(sums, v.dtype)) @ v  # (B, n, H, C, V), of the tokens of the same chunk
    remaining = (sums[..., -1:] - sums).to(v.dtype).exp()  # (B, n, H, C): of a token, at the end of its chunk
    own = v.mT @ (k * remaining[..., None])  # (B, n, H, V, K)
    before, last = _states(own, total, state)
    out = out + (r * reached[..., None]) @ before.mT
    if log_w.ndim == 1 and time % chunk:  # padding has decayed the state
        last = last * (-log_w * (chunk - time % chunk)).exp()[:, None, None]
    return out.transpose(2, 3).reshape(batch, number * chunk, heads, width)[:, :time], last


def _chunks(x: Tensor, chunk: int) -> Tensor:
    """Cut x (B, T, H, K) into chunks (B, n, H, C, K); zeros fill the last one."""
    missing = -x.shape[1] % chunk
    x = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
    return x.view(len(x), -1, chunk, *x.shape[2:]).transpose(2, 3)


def _decays(sums: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is left of place j at place i, e^{sum_i - sum_j}, 0 where j > i: (..., C) -> (..., C, C) of dtype."""
    size = sums.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=sums.device).triu(1)
    return (sums[..., :, None] - sums[..., None, :]).to(dtype).masked_fill(later, float("-inf")).exp()


def _states(own: Tensor, total: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Carry the states from chunk to chunk.

    Args:
        own: (B, n, H, V, K), what a chunk alone leaves in the state.
        total: (B or 1, n or 1, H), sum of log w over each chunk.
        state: (B, H, V, K) before the first chunk; None for zeros.

    Returns:
        The states before each chunk (B, n, H, V, K), and the one after the last (B, H, V, K).
    """
    batch, number, heads, width, keys = own.shape
    first = own.new_zeros(batch, 1, heads, width, keys) if state is None else state[:, None]
    parts = torch.cat([first, own], 1)  # (B, n + 1, H, V, K)
    logs = F.pad(total.expand(-1, number, -1), (0, 0, 1, 0)).transpose(1, 2)  # (B or 1, H, n + 1)
    # Sums of each stretch by itself: over a whole text, the difference of two large sums would be inexact.
    places = torch.arange(number + 1, device=own.device)
    after = places[:, None] > places  # (n + 1, n + 1): what place j left has been through place i
    stretches = logs[..., None].masked_fill(~after, 0.0).cumsum(-2)
    decays = stretches.masked_fill(places[:, None] < places, float("-inf")).exp()
    states = decays @ parts.transpose(1, 2).flatten(3)  # (B, H, n + 1, V K)
    states = states.view(batch, heads, number + 1, width, keys).transpose(1, 2)
    return states[:, :-1], states[:, -1]
