"""Contextual positions. B batch, H query heads, T time, W width of a head, P positions."""

from typing import Any

import torch
from torch import Tensor


def contextual_bias(q: Tensor, scores: Tensor, counts: Tensor, embedding: Tensor) -> Tensor:
    """Return the contextual position bias of the scores.

        g_ij = sigmoid(s_ij);  p_ij = min(sum over k = j..i of g_ik, P - 1);  bias_ij = q_i . e[p_ij]

    The position of a key is the number of open gates from it to the query. Between two whole positions the bias is
    interpolated through q . e, so that P products serve every key. Source: CoPE, Golovneva et al. 2024 (arXiv
    2405.18719), eq. 3-5.

    Args:
        q: (B, H, T, W) float32.
        scores: (B, H, T, T) float32, before any mask.
        counts: (B or 1, 1, T, T) float32: 1 where key j counts for query i, 0 where it is not seen or not counted.
        embedding: (P, W) float32.

    Returns:
        (B, H, T, T) float32.
    """
    bias: Tensor = _ContextualBias.apply(q @ embedding.t(), scores, counts)  # type: ignore[no-untyped-call]
    return bias


def contextual_bias_plainly(q: Tensor, scores: Tensor, counts: Tensor, embedding: Tensor) -> Tensor:
    """Return the same bias as the paper writes it; `contextual_bias` and its gradient are tested against it."""
    gates = scores.sigmoid() * counts
    positions = gates.flip(-1).cumsum(-1).flip(-1).clamp(max=embedding.shape[0] - 1)  # (B, H, T, T)
    logits = q @ embedding.t()  # (B, H, T, P)
    low = logits.gather(-1, positions.floor().long())
    high = logits.gather(-1, positions.ceil().long())
    return torch.lerp(low, high, positions - positions.floor())


class _ContextualBias(torch.autograd.Function):
    """The bias from logits (B, H, T, P), scores and counts, with a gradient by hand.

    The plain form keeps about 40 arrays of T x T for its gradient; this one keeps 5. That makes a training step of a
    small model with CoPE a third shorter.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, scores: Tensor, counts: Tensor) -> Tensor:
        last = logits.shape[-1] - 1
        sigmoid = scores.sigmoid()
        positions = (sigmoid * counts).flip(-1).cumsum_(-1).flip(-1).clamp_(max=last)
        below = positions.long().clamp_(max=last - 1)  # the last position is all of its upper neighbour
        share = positions.sub_(below)  # (B, H, T, T): how far above `below`
        low = logits.gather(-1, below)
        slope = logits.diff(dim=-1).gather(-1, below)
        ctx.save_for_backward(sigmoid, counts, below, share, slope)
        ctx.positions = last + 1
        return torch.addcmul(low, share, slope)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        sigmoid, counts, below, share, slope = ctx.saved_tensors
        upper = gradient * share
        of_logits = gradient.new_zeros(*gradient.shape[:-1], ctx.positions)
        of_logits[..., 1:].scatter_add_(-1, below, upper)
        of_logits[..., :-1].scatter_add_(-1, below, gradient - upper)
        # a position capped at the last one does not move, however many gates are open
        free = (below + share < ctx.positions - 1).to(gradient.dtype)
        of_gates = (gradient * slope).mul_(free).cumsum_(-1)
        of_counts = (of_gates * sigmoid).sum(1, keepdim=True) if ctx.needs_input_grad[2] else None
        if of_counts is not None and counts.shape[0] == 1:
            of_counts = of_counts.sum(0, keepdim=True)
        of_scores = of_gates.mul_(counts).mul_(sigmoid).mul_(1 - sigmoid)
        return of_logits, of_scores, of_counts
