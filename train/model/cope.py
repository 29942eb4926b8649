"""Contextual positions. B batch, H query heads, T time, W width of a head, P positions."""

from __future__ import annotations

import torch
from torch import Tensor


def contextual_bias(q: Tensor, scores: Tensor, counts: Tensor, embedding: Tensor) -> Tensor:
    """What position adds to the scores: a token's position is how many tokens since then open its gate.

        g_ij = sigmoid(s_ij);  p_ij = min(sum over k = j..i of g_ik, P - 1);  bias_ij = q_i . e[p_ij]

    e[p] between two whole positions is interpolated: through q . e, so that P products serve every key.

    Args:
        q: (B, H, T, W). scores: (B, H, T, T), before any mask. embedding: (P, W).
        counts: (B or 1, 1, T, T) float: 1 where key j counts for query i, 0 where it is not seen or not counted.
    Returns:
        (B, H, T, T), the dtype of scores.
    Source: CoPE, Golovneva et al. 2024 (arXiv 2405.18719), eq. 3-5.
    """
    gates = scores.sigmoid() * counts
    positions = gates.flip(-1).cumsum(-1).flip(-1).clamp(max=embedding.shape[0] - 1)  # (B, H, T, T)
    below = positions.floor()
    logits = q @ embedding.t()  # (B, H, T, P)
    low = logits.gather(-1, below.long())
    high = logits.gather(-1, positions.ceil().long())
    return torch.lerp(low, high, positions - below)
