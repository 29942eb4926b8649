"""Sums over the tokens of all ranks, for losses and controllers that are not linear in them.

A mean over a batch is a sum divided by a count, and both need the parts of all ranks. In a process alone, every
function here returns its argument, so that the result is the same to the last bit.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def ranks() -> int:
    """Return the number of processes that share a batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return dist.get_rank() if ranks() > 1 else 0


class _Total(torch.autograd.Function):
    """The sum over ranks.

    Every rank computes the same loss from it and differentiates it by its own tokens alone. The gradients of the ranks
    are summed afterwards, so the gradient of the sum passes through unchanged.
    """

    @staticmethod
    def forward(_: Any, mine: Tensor) -> Tensor:
        everyones = mine.clone()
        dist.all_reduce(everyones)
        return everyones

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient


def total(*mine: Tensor) -> tuple[Tensor, ...]:
    """Sum each tensor over all ranks, in one message; shapes and types stay.

    The sum is taken in float64: counts stay exact, and the result does not depend on the number of ranks.
    """
    if ranks() == 1:
        return mine
    flat: Tensor = _Total.apply(torch.cat([each.reshape(-1).double() for each in mine]))  # type: ignore[no-untyped-call]
    parts = torch.split(flat, [each.numel() for each in mine])
    return tuple(part.view(each.shape).to(each.dtype) for part, each in zip(parts, mine, strict=True))


def gathered(rows: Tensor) -> Tensor:
    """Concatenate the rows (n, ...) of all ranks, where n may differ; the result is the same on all ranks.

    The rows of a rank follow those of the rank before it in the batch, so the order is that of one process.
    """
    if ranks() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(ranks())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = max(int(count) for count in counts)
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows
    everyones = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(everyones, padded)
    return torch.cat([each[: int(count)] for each, count in zip(everyones, counts, strict=True)])


def drawn_for_all(columns: int, rows: int, device: torch.device) -> Tensor:
    """Draw uniform random numbers (rows, columns) for the `columns` sequences of this rank.

    Every rank draws for the whole batch and uses its own part, so that all generators stay equal to that of one
    process.
    """
    return torch.rand(rows, columns * ranks(), device=device)[:, columns * rank() : columns * (rank() + 1)]
