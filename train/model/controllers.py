"""Holds an average by a threshold: by the quantiles of a routing score, or by a proportional-integral controller."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

GRID_POINTS = 33


class QuantileController(nn.Module):
    """Tracks the quantiles of a score over training batches; an entry of its table is the threshold for a share.

    The table is constant inside a forward pass, so a decision depends on nothing to its right and there is one rule in
    training and at inference (a causal form of expert choice; see also Expert Threshold routing, arXiv 2603.11535).

    Buffers (both part of the checkpoint):
        table: (GRID_POINTS,) float32, the score at each share of `linspace(0, 1)`.
        num_updates: () int64, how many batches have been seen.
    """

    table: Tensor
    num_updates: Tensor

    def __init__(self, initial: Tensor, ema: float) -> None:
        super().__init__()
        self.ema = ema
        self.register_buffer("table", quantiles(initial.float()))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def threshold(self, share: float) -> Tensor:
        """The score below which `share` (0..1) of the scores lie, () float32."""
        place = share * (GRID_POINTS - 1)
        low = min(int(place), GRID_POINTS - 2)
        return torch.lerp(self.table[low], self.table[low + 1], place - low)

    @torch.no_grad()
    def observe(self, scores: Tensor) -> None:
        """Moves the table towards the quantiles of `scores` (any shape); the first batch sets it."""
        if scores.numel() == 0:
            return
        seen = quantiles(scores)
        decay = torch.where(self.num_updates == 0, 0.0, self.ema)
        self.table.copy_(torch.lerp(seen, self.table, decay))
        self.num_updates += 1


class PIController(nn.Module):
    """Moves a level until an average is what was asked for: level += kp (error - last error) + ki error.

    The velocity form of a PI controller, whose integral is the level itself, so that it cannot wind up where the level
    stops at 0 or 1. Source: DTop-p (arXiv 2512.13996), which controls the threshold of top-p routing so.

    Buffers (all part of the checkpoint):
        level: () float32. error: () float32, of the last batch. num_updates: () int64.
    """

    level: Tensor
    error: Tensor
    num_updates: Tensor

    def __init__(self, level: float, gains: tuple[float, float]) -> None:
        super().__init__()
        self.proportional, self.integral = gains
        self.register_buffer("level", torch.tensor(float(level)))
        self.register_buffer("error", torch.zeros(()))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def observe(self, error: Tensor) -> None:
        """error (): how far the level's average is from its target, positive where the level must rise."""
        last = torch.where(self.num_updates == 0, error, self.error)
        change = self.proportional * (error - last) + self.integral * error
        # 1 itself would mean everything, whatever the scores
        self.level.copy_((self.level + change).clamp(0, 1 - 2**-20))
        self.error.copy_(error)
        self.num_updates += 1


def quantiles(scores: Tensor) -> Tensor:
    """Scores of any shape -> (GRID_POINTS,), linear between order statistics as in `numpy.quantile`."""
    ordered = sort(scores.flatten())
    place = torch.linspace(0, 1, GRID_POINTS, device=scores.device, dtype=torch.float64) * (len(ordered) - 1)
    low = place.long().clamp_(max=max(len(ordered) - 2, 0))
    high = (low + 1).clamp_(max=len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], (place - low).to(ordered.dtype))


def sort(values: Tensor) -> Tensor:
    """(n,) ascending. On a CPU by numpy, which sorts floats in vector registers: 14,000 in 0.03 ms where torch, which
    carries the places along, takes 0.7."""
    if values.device.type != "cpu":
        return values.sort().values
    return torch.from_numpy(np.sort(values.detach().numpy()))
