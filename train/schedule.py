"""The learning rate over a run: linear warm-up, then a plateau and a linear decay, a cosine, or nothing."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from .model.config import Section


class ScheduleConfig(Section):
    """How the learning rates move, as shares of the whole run."""

    kind: Literal["wsd", "cosine", "constant"] = "wsd"
    """`wsd`: warm-up, stable, decay; `cosine`: half a cosine after the warm-up; `constant`: warm-up only."""
    warmup_share: float = Field(0.03, ge=0, le=1)
    decay_share: float = Field(0.6, ge=0, le=1)
    """Share of the run, at its end, over which `wsd` falls in a line."""
    final_share: float = Field(0.0, ge=0, le=1)
    """What is left of the peak at the very end."""


def progress(step: int, steps: int | None, seconds: float = 0.0, budget_seconds: float | None = None) -> float:
    """Where in the run `step` (0, 1, ...) stands, 0..1: by steps, by the clock, or by whichever is further.

    The middle of the step counts, so neither the first nor the last has a learning rate of zero. A run that is resumed
    with another number of steps continues on the schedule of the new number.
    """
    by_steps = 0.0 if not steps else (step + 0.5) / steps
    by_clock = 0.0 if not budget_seconds else seconds / budget_seconds
    return min(1.0, max(by_steps, by_clock))


def multiplier(config: ScheduleConfig, done: float) -> float:
    """The factor on every learning rate at progress `done` (0..1); `wsd` as in MiniCPM (arXiv 2404.06395)."""
    if done < config.warmup_share:
        return max(done / config.warmup_share, 1e-3)  # the very first moment on a clock still moves the weights
    if config.kind == "constant":
        return 1.0
    if config.kind == "cosine":
        after = (done - config.warmup_share) / max(1.0 - config.warmup_share, 1e-9)
        shape = 0.5 * (1.0 + math.cos(math.pi * after))
    else:
        shape = min(1.0, (1.0 - done) / config.decay_share) if config.decay_share else 1.0
    return config.final_share + (1.0 - config.final_share) * shape
