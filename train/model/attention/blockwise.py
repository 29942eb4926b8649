"""The core of causal attention in bf16 on a CPU: softmax(q k^T / sqrt(W)) v, one block of queries at a time.

B batch, T time, H query heads, K key/value heads, G = H / K, W width of a head, R = B K rows (r of them in a block),
Q queries of a block, S keys up to its end.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

LEAST_TIME = 512
"""Shortest sequence that is attended by blocks. Shorter ones gain nothing and are slower when compiled; their scores
also need little memory (decision 0022)."""
BLOCK = 128
"""Queries of a block. Fewer mean more calls; more mean more products with keys that no query may see."""
AT_ONCE = 2**20
"""Scores computed at once, if there are enough rows. More do not stay in the cache; fewer mean more calls."""


class _Block(NamedTuple):
    """The queries of some rows, and the keys up to the last query."""

    rows: slice
    queries: slice
    keys: slice


def _blocks(rows: int, groups: int, time: int) -> Iterator[_Block]:
    size = _size(time)
    together = max(1, AT_ONCE // (groups * size * time))
    for row in range(0, rows, together):
        for first in range(0, time, size):
            end = min(first + size, time)
            yield _Block(slice(row, min(row + together, rows)), slice(first, end), slice(end))


def _size(time: int) -> int:
    return min(BLOCK, -(-time // 2))  # at least two blocks: one alone would score every masked pair


class _Core:
    """The part that forward and backward share: attention weights of one block at a time, in one reused buffer.

    Made from q (B, H, T, W), k and v (B, K, T, W).
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> None:
        batch, heads, time, width = q.shape
        kv_heads = k.shape[1]
        self.scale = width**-0.5
        self.queries = (q * self.scale).reshape(batch * kv_heads, heads // kv_heads, time, width)  # (R, G, T, W)
        self.keys, self.values = k.flatten(0, 1), v.flatten(0, 1)  # (R, T, W)
        self.bias, self.kv_heads, size = bias, kv_heads, _size(time)
        self.later = q.new_full((size, size), float("-inf")).triu_(1)
        self.blocks = list(_blocks(batch * kv_heads, heads // kv_heads, time))
        most = max(
            (each.rows.stop - each.rows.start) * (each.queries.stop - each.queries.start) * each.keys.stop
            for each in self.blocks
        )
        self.memory = q.new_empty(3, most * heads // kv_heads)

    def of(self, tensor: Tensor, block: _Block) -> Tensor:
        """Select the block of a tensor: (R, G, T, W) -> (r, G*Q, W)."""
        return tensor[block.rows, :, block.queries].flatten(1, 2)

    def room(self, which: int, block: _Block) -> Tensor:
        """Return part `which` of the buffer in the shape of the block's scores, (r, G*Q, S)."""
        rows, groups = block.rows.stop - block.rows.start, self.queries.shape[1]
        shape = (rows, groups * (block.queries.stop - block.queries.start), block.keys.stop)
        return self.memory[which, : shape[0] * shape[1] * shape[2]].view(shape)

    def shares(self, block: _Block) -> Tensor:
        """Return the attention weights of a block, (r, G*Q, S); the next block overwrites them."""
        keys = self.keys[block.rows, block.keys]
        scores = torch.bmm(self.of(self.queries, block), keys.transpose(1, 2), out=self.room(0, block))
        size = block.queries.stop - block.queries.start
        by_head = scores.view(len(keys), -1, size, block.keys.stop)
        if self.bias is None:
            by_head[..., block.queries.start :] += self.later[:size, :size]
        else:
            bias = self.bias[:, 0, block.queries, block.keys]  # (B or 1, Q, S)
            if len(bias) > 1:
                bias = bias.repeat_interleave(self.kv_heads, 0)[block.rows]
            by_head += bias[:, None]
        return torch.softmax(scores, -1, out=self.room(1, block))


@torch.library.custom_op("adaptive_lm::attention_forward", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attend: q (B, H, T, W), k and v (B, K, T, W) -> (B, H, T, W)."""
    core = _Core(q, k, v, bias)
    mixed = torch.empty_like(core.queries, memory_format=torch.contiguous_format)
    for block in core.blocks:
        out = torch.bmm(core.shares(block), core.values[block.rows, block.keys])
        mixed[block.rows, :, block.queries] = out.view(len(out), mixed.shape[1], -1, mixed.shape[3])
    return mixed.view(q.shape)


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001  # the operator's signature
    return q.new_empty(q.shape)


@torch.library.custom_op("adaptive_lm::attention_backward", mutates_args=())
def _backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, from the gradient (B, H, T, W) of the output."""
    core = _Core(q, k, v, bias)
    of_mixed = gradient.reshape(core.queries.shape)
    of_queries = torch.empty_like(core.queries, memory_format=torch.contiguous_format)
    of_keys, of_values = (torch.zeros(k.flatten(0, 1).shape, device=q.device) for _ in range(2))  # sums, in float32
    for block in core.blocks:
        rows, keys = block.rows, block.keys
        here, shares = core.of(of_mixed, block), core.shares(block)
        of_values[rows, keys] += torch.bmm(shares.transpose(1, 2), here)
        of_shares = torch.bmm(here, core.values[rows, keys].transpose(1, 2), out=core.room(0, block))
        of_scores = core.room(2, block)
        torch.ops.aten._softmax_backward_data.out(of_shares, shares, -1, shares.dtype, grad_input=of_scores)
        of_block = torch.bmm(of_scores, core.keys[rows, keys])
        of_queries[rows, :, block.queries] = of_block.view(len(of_block), of_queries.shape[1], -1, of_queries.shape[3])
        of_keys[rows, keys] += torch.bmm(of_scores.transpose(1, 2), core.of(core.queries, block))
    of_q = of_queries.mul_(core.scale).view(q.shape)
    return of_q, of_keys.to(k.dtype).view(k.shape), of_values.to(v.dtype).view(v.shape)


@_backward.register_fake
def _(  # the operator's signature
    gradient: Tensor,  # noqa: ARG001
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # noqa: ARG001  # torch.library's own signature
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, gradient):  # type: ignore[no-untyped-def]  # torch.library's own signature
    return (*_backward(gradient, *ctx.saved_tensors), None)


_forward.register_autograd(_differentiate, setup_context=_keep)


def attend_blockwise(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attend without keeping scores: -> (B, H, T, W). The backward pass computes them again.

    A block of queries computes only the scores up to its end: 0.56 of the T^2 scores at 1024 tokens. That, and the
    reuse of one buffer, pays for computing them twice. Source: FlashAttention, Dao et al. 2022 (arXiv 2205.14135).
    Departs from it: a block sees all its keys at once, so that its softmax is an ordinary one.

    Args:
        q: (B, H, T, W).
        k: (B, K, T, W).
        v: (B, K, T, W).
        bias: (B or 1, 1, T, T) in the dtype of q, -inf where a key is not seen, which includes every key after the
            query; it gets no gradient. None for plain causal attention.
    """
    mixed: Tensor = _forward(q, k, v, bias)
    return mixed
