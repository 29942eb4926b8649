"""Learning rates and sparsity at each point of a run."""

import math
from typing import NamedTuple

from ..data.windows.order import mix
from .schedule_config import ScheduleConfig, place_in_cycle

FIRST = 1e-3
"""Factor on the learning rate at the very start of a warm-up, so that the first step by the clock is not a no-op."""
DRAW = 0x5BA5517E
"""Keeps the draws of the sparsity apart from everything else that is drawn by seed and step."""


def progress(
    step: int, steps: int | None, seconds: float = 0.0, budget_seconds: float | None = None, width: int = 1
) -> float:
    """Return the progress (0..1) of the run at `step` (0, 1, ...): by steps or by the clock, whichever is further.

    `step` and `steps` may count windows, `width` of which make a step. The middle of the step counts, so neither the
    first nor the last has a learning rate of 0. A run that is resumed with another number of steps continues on the
    schedule of the new number.
    """
    by_steps = 0.0 if not steps else (step + 0.5 * width) / steps
    by_clock = 0.0 if not budget_seconds else seconds / budget_seconds
    return min(1.0, max(by_steps, by_clock))


class WarmUp(NamedTuple):
    """State of the warm-up."""

    risen: float
    """Share of the warm-up that is done, 0..1."""
    end: float
    """Progress at which it ended, 0..1; meaningless before."""


def warm_up(config: ScheduleConfig, done: float) -> WarmUp:
    """Return the state at progress `done` (0..1) of a warm-up that is given as a share."""
    share = config.warmup_share or 0.0
    return WarmUp(done / share if done < share else 1.0, share)


def multiplier(config: ScheduleConfig, done: float, warm: WarmUp) -> float:
    """Return the factor on every learning rate at progress `done` (0..1); skipped steps count as done."""
    if warm.risen < 1:
        return max(warm.risen, FIRST) if config.warmup == "linear" else FIRST ** (1 - warm.risen)
    after = (done - warm.end) / max(1.0 - warm.end, 1e-9)
    match config.kind:
        case "constant":
            return 1.0
        case "cosine":
            shape = half_cosine(after)
        case "sgdr":
            shape = half_cosine(place_in_cycle(after, config.restart_period, config.restart_multiplier))
        case "wsd":
            shape = min(1.0, (1.0 - done) / config.decay_share) if config.decay_share else 1.0
    return config.final_share + (1.0 - config.final_share) * shape


def half_cosine(place: float) -> float:
    """Return 1 at 0, falling to 0 at 1."""
    return 0.5 * (1.0 + math.cos(math.pi * place))


def scheduled_sparsity(config: ScheduleConfig, done: float) -> float:
    """Return the sparsity at progress `done`: 0 uses everything, 1 the configured averages."""
    if done < config.dense_share:
        return 0.0
    if config.sparsify_share and done < config.dense_share + config.sparsify_share:
        return (done - config.dense_share) / config.sparsify_share
    return 1.0


def drawn_sparsity(config: ScheduleConfig, done: float, seed: int, step: int) -> float:
    """Return the sparsity of training step `step` (0, 1, ...): the scheduled one times a random factor.

    The factor is a function of seed and step, so a resumed run draws the same.
    """
    scheduled = scheduled_sparsity(config, done)
    if config.random_sparsity is None:
        return scheduled
    low, high = config.random_sparsity
    return scheduled * (low + (high - low) * (mix(seed, step, DRAW) / 2**64))
