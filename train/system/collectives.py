"""Sums over the tokens of all ranks, for losses and controllers that are not linear in them.

A mean over a batch is a sum over a count, and both are known only when all ranks have said theirs. Alone, every
function here gives back what it was given: one process computes what it always did, to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def ranks() -> int:
    """How many processes hold the batch together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if ranks() > 1 else 0


class _Total(torch.autograd.Function):
    """The sum over ranks. Every rank computes the same loss from it and differentiates it by its own tokens alone: the
    gradients of the ranks are summed afterwards, so that of the sum passes through as it is."""

    @staticmethod
    def forward(_: Any, mine: Tensor) -> Tensor:
        everyones = mine.clone()
        dist.all_reduce(everyones)
        return everyones

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient


def total(*mine: Tensor) -> tuple[Tensor, ...]:
    """The sums over all ranks of some tensors, each with its shape and type, in one message.

    They travel in float64: counts stay exact, and the sum does not hang on how many ranks there are.
    """
    if ranks() == 1:
        return mine
    flat: Tensor = _Total.apply(torch.cat([each.reshape(-1).double() for each in mine]))  # type: ignore[no-untyped-call]
    parts = torch.split(flat, [each.numel() for each in mine])
    return tuple(part.view(each.shape).to(each.dtype) for part, each in zip(parts, mine, strict=True))


def gathered(rows: Tensor) -> Tensor:
    """The rows (n, ...) of all ranks one below the other, n being different on each; the same on all ranks.

    A rank holds the rows of a batch that follow those of the rank before, so they come in the order of one process.
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
    """Uniform random numbers (rows, columns) for the `columns` sequences of this rank.

    Every rank draws for the whole batch and takes its own, so that all generators stay alike, and as those of one
    process.
    """
    return torch.rand(rows, columns * ranks(), device=device)[:, columns * rank() : columns * (rank() + 1)]
