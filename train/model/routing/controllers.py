"""Controllers that hold an average: by a threshold, from quantiles of the score or by a PI controller, or by a loss."""

import numpy as np
import torch
from torch import Tensor, nn

GRID_POINTS = 33
"""Entries of a quantile table, at even shares from 0 to 1."""


class QuantileController(nn.Module):
    """Track the quantiles of a score over training batches; an entry of the table is the threshold for a share.

    The table is constant inside a forward pass. So a decision depends on no later token, and training and inference
    follow the same rule: a causal form of expert choice (see also Expert Threshold routing, arXiv 2603.11535).
    """

    table: Tensor
    """(GRID_POINTS,) float32, the score at each share of `linspace(0, 1)`. A buffer, part of the checkpoint."""
    num_updates: Tensor
    """() int64, the number of batches seen. A buffer, part of the checkpoint."""

    def __init__(self, initial: Tensor, ema: float) -> None:
        super().__init__()
        self.ema = ema
        self.register_buffer("table", quantiles(initial.float()))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def threshold(self, share: float) -> Tensor:
        """Return the score below which a share (0..1) of the scores are, () float32."""
        place = share * (GRID_POINTS - 1)
        low = min(int(place), GRID_POINTS - 2)
        return torch.lerp(self.table[low], self.table[low + 1], place - low)

    @torch.no_grad()
    def observe(self, scores: Tensor) -> None:
        """Move the table towards the quantiles of `scores` (any shape); the first batch sets it."""
        if scores.numel() == 0:
            return
        seen = quantiles(scores)
        decay = torch.where(self.num_updates == 0, 0.0, self.ema)
        self.table.copy_(torch.lerp(seen, self.table, decay))
        self.num_updates += 1


class PIController(nn.Module):
    """Move a level until an average reaches its target: level += kp (error - last error) + ki error.

    The velocity form of a PI controller. Its integral is the level itself, so it cannot wind up where the level stops
    at 0 or 1. Source: DTop-p (arXiv 2512.13996), which controls the threshold of top-p routing in this way.
    """

    level: Tensor
    """() float32, 0 to below 1. A buffer, part of the checkpoint."""
    error: Tensor
    """() float32, the error of the last batch. A buffer, part of the checkpoint."""
    num_updates: Tensor
    """() int64, the number of batches seen. A buffer, part of the checkpoint."""

    def __init__(self, level: float, gains: tuple[float, float]) -> None:
        super().__init__()
        self.proportional, self.integral = gains
        self.register_buffer("level", torch.tensor(float(level)))
        self.register_buffer("error", torch.zeros(()))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def observe(self, error: Tensor) -> None:
        """Move the level by the error () of a batch: target minus average, positive where the level must rise."""
        last = torch.where(self.num_updates == 0, error, self.error)
        change = self.proportional * (error - last) + self.integral * error
        # 1 itself means everything, whatever the scores
        self.level.copy_((self.level + change).clamp(0, 1 - 2**-20))
        self.error.copy_(error)
        self.num_updates += 1


class L1Controller(nn.Module):
    """Adapt the coefficient of an L1 loss until an average is reached: coefficient *= GROWTH, or /= GROWTH, each step.

    Source: ReMoE (arXiv 2412.14711), with its values.
    """

    GROWTH = 1.2
    START = 1e-8
    coefficient: Tensor
    """() float32, greater than 0. A buffer, part of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("coefficient", torch.tensor(self.START))

    @torch.no_grad()
    def observe(self, error: Tensor) -> None:
        """Change the coefficient after a batch of error (): target minus average, negative where it must rise."""
        self.coefficient.mul_(self.GROWTH ** -error.sign()).clamp_(1e-12, 1e6)


def quantiles(scores: Tensor) -> Tensor:
    """Return the quantiles of scores of any shape, (GRID_POINTS,), linear between order statistics as numpy's."""
    ordered = sort(scores.flatten())
    place = torch.linspace(0, 1, GRID_POINTS, device=scores.device, dtype=torch.float64) * (len(ordered) - 1)
    low = place.long().clamp_(max=max(len(ordered) - 2, 0))
    high = (low + 1).clamp_(max=len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], (place - low).to(ordered.dtype))


def sort(values: Tensor) -> Tensor:
    """Sort (n,) in ascending order.

    On a CPU by numpy, which sorts floats in vector registers: 14,000 in 0.03 ms. torch, which also sorts the indices,
    takes 0.7 ms.
    """
    if values.device.type != "cpu":
        return values.sort().values
    return torch.from_numpy(np.sort(values.detach().numpy()))
