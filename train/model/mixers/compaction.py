"""Tokens that run a layer, moved to the front of their sequence and back. B batch, T time.

Shapes do not depend on the data, so that a block compiles. Rows behind the last token that runs hold the others: they
come after it, so no result that is used depends on them.
"""

import torch
from torch import Tensor


def compact(x: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Move the rows of x (B, T, D) that are present (B, T) to the front, in their order.

    Returns:
        The rows (B, T, D), and the place from which each came, (B, T) int64.
    """
    order = torch.sort((~present).to(torch.uint8), dim=1, stable=True).indices
    return x.gather(1, order[..., None].expand(x.shape)), order


def in_place(rows: Tensor, present: Tensor) -> Tensor:
    """Move rows (B, T, D) that `compact` moved back to their places; the rows of all others are 0."""
    rank = (present.cumsum(1) - 1).clamp(min=0)  # (B, T)
    moved = rows.gather(1, rank[..., None].expand(rows.shape))
    return torch.where(present[..., None], moved, 0.0)
