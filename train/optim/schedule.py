"""What moves over a run: the learning rates, and how sparse the model is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from ..data.order import mix
from ..model.config import Section
from .batch_size import Rule

FIRST = 1e-3
"""Factor on the learning rate at the very start of a warm-up: the first moment on a clock still moves the weights."""
WARM_UPS = ("warmup_share", "warmup_steps", "warmup_tokens", "warmup_epochs")
WARM_UP_SHARE = 0.03
DRAW = 0x5BA5517E
"""Keeps the draws of the sparsity apart from whatever else is drawn by seed and step."""


class ScheduleConfig(Section):
    """How learning rates and sparsity move, in shares of the whole run."""

    kind: Literal["wsd", "cosine", "constant", "sgdr"] = "wsd"
    """`wsd`: warm-up, stable, decay (MiniCPM, arXiv 2404.06395), for a run that may be made longer. `cosine`: half a
    cosine after the warm-up, for a run whose length is fixed. `sgdr`: cosines that start again (Loshchilov and Hutter,
    arXiv 1608.03983), for text in stages or several good ends in one run. `constant`: warm-up only, where the end is
    not known or runs are compared step by step. `cosine` is one cycle of the same paper."""
    warmup: Literal["linear", "exponential"] = "linear"
    """`linear` (Goyal et al. 2017, arXiv 1706.02677) is what published recipes mean. `exponential` rises by equal
    factors from a thousandth: gentler on weights that routers have not settled on."""
    warmup_share: float | None = Field(None, ge=0, le=1)
    """Of the run; 0.03 where no warm-up is given."""
    warmup_steps: int | None = Field(None, ge=1)
    """In place of a share: where a published recipe says so, or the run ends by the clock and the first steps must be
    the same on any machine."""
    warmup_tokens: int | None = Field(None, ge=1)
    """In place of a share: where runs with other batches are to be warm after the same text."""
    warmup_epochs: float | None = Field(None, gt=0)
    """In place of a share: passes over the training text, or over the first source where they come in turn."""
    each_stage: bool = False
    """Whether each source that comes in its turn (`epochs`) has the whole schedule of the learning rate for itself."""
    decay_share: float = Field(0.6, ge=0, le=1)
    """Share of the run, at its end, over which `wsd` falls in a line."""
    restart_period: float = Field(1 / 7, ge=1e-3, le=1)
    """Length of the first cosine of `sgdr`, as a share of the run after the warm-up."""
    restart_multiplier: float = Field(2.0, gt=0)
    """Each further cosine is so many times as long; 1/7 and 2 make three that fill the run."""
    final_share: float = Field(0.0, ge=0, le=1)
    """What is left of the peak at the very end, and before each restart."""
    dense_share: float = Field(0.0, ge=0, le=1)
    """Share of the run, at its start, in which every token uses all experts, heads and layers."""
    sparsify_share: float = Field(0.0, ge=0, le=1)
    """Share of the run, after that, over which the model goes in a line from all to the averages it is configured for.
    """
    batch_rate: Rule = "none"
    """What a change of the batch does to every learning rate. `linear` multiplies them as the batch (Goyal et al. 2017,
    arXiv 1706.02677): SGD, batches far below the noise scale. `sqrt` by its root (Krizhevsky 2014, arXiv 1404.5997;
    Malladi et al. 2022, arXiv 2205.10287): Adam and Muon. `none`: the larger batch is to do what a lower rate would
    (Smith et al. 2017, arXiv 1711.00489)."""
    random_sparsity: tuple[float, float] | None = None
    """Each step's sparsity is multiplied by a number drawn evenly between these two: 0 is everything, 1 the configured
    averages, above 1 fewer still. For a dial that must reach far; it costs loss at the averages themselves."""

    @model_validator(mode="before")
    @classmethod
    def _warms_up_once(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        named = [name for name in WARM_UPS if given.get(name) is not None]
        if len(named) > 1:
            raise ValueError(
                f"{' and '.join(f'{name} ({given[name]})' for name in named)} are both given; keep one warm-up and set "
                f"the other to null, as in --set schedule.{named[0]}=null"
            )
        return given if named else {**given, "warmup_share": WARM_UP_SHARE}

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        left = place_in_cycle(1 - 1e-6, self.restart_period, self.restart_multiplier)
        if self.kind == "sgdr" and left < 0.95:
            fitting = nearest_period(self.restart_period, self.restart_multiplier)
            raise ValueError(
                f"restart_period {self.restart_period:g} and restart_multiplier {self.restart_multiplier:g} cut the "
                f"last cosine off at {left:.0%}, so the run would end at a high learning rate; a period of "
                f"{fitting:.6g} fits"
            )
        if self.dense_share + self.sparsify_share > 1:
            raise ValueError(
                f"dense_share ({self.dense_share:g}) and sparsify_share ({self.sparsify_share:g}) are together more "
                "than the whole run; make them at most 1"
            )
        if self.random_sparsity is not None:
            low, high = self.random_sparsity
            if not 0 <= low <= high < math.inf:
                raise ValueError(
                    f"random_sparsity is {[low, high]}; expected two numbers from 0 up, the smaller first, as in "
                    "[0.5, 1.5]"
                )
        return self

    @property
    def moves_sparsity(self) -> bool:
        """Whether the sparsity is ever anything but 1."""
        return bool(self.dense_share or self.sparsify_share or self.random_sparsity)


def progress(
    step: int, steps: int | None, seconds: float = 0.0, budget_seconds: float | None = None, width: int = 1
) -> float:
    """Where in the run `step` (0, 1, ...) stands, 0..1: by steps, by the clock, or by whichever is further.

    `step` and `steps` may count windows, `width` of which make a step. The middle of the step counts, so neither the
    first nor the last has a learning rate of zero. A run that is resumed with another number of steps continues on the
    schedule of the new number.
    """
    by_steps = 0.0 if not steps else (step + 0.5 * width) / steps
    by_clock = 0.0 if not budget_seconds else seconds / budget_seconds
    return min(1.0, max(by_steps, by_clock))


class WarmUp(NamedTuple):
    """How far the warm-up is."""

    risen: float
    """Share of it that is done, 0..1."""
    end: float
    """Where in the schedule it ended, 0..1; means nothing before."""


def warm_up(config: ScheduleConfig, done: float) -> WarmUp:
    """The warm-up by `warmup_share` at progress `done` (0..1)."""
    share = config.warmup_share or 0.0
    return WarmUp(done / share if done < share else 1.0, share)


def multiplier(config: ScheduleConfig, done: float, warm: WarmUp) -> float:
    """The factor on every learning rate at progress `done` (0..1); steps that were skipped count as done."""
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
    """1 at 0, falling to 0 at 1."""
    return 0.5 * (1.0 + math.cos(math.pi * place))


def place_in_cycle(after: float, period: float, factor: float) -> float:
    """How far (0..1) a cycle is at `after` (0..1): cycles last period, period * factor, period * factor^2, ...

    A function of where the run stands and of nothing else, so there is no counter of restarts to lose. Cycles that
    shrink never fill the run: the last one that is a thousandth of it or more stays at its end.
    """
    start = 0.0
    while after >= start + period * (1 - 1e-9):
        if start + period >= 1 - 1e-9 or period * factor < 1e-3:
            return 1.0
        start, period = start + period, period * factor
    return (after - start) / period


def nearest_period(period: float, factor: float) -> float:
    """The period nearest to `period` with which a whole number of cycles fills the run."""
    fitting = [1 / sum(factor**cycle for cycle in range(number)) for number in range(1, 33)]
    return min(fitting, key=lambda each: abs(each - period))


def scheduled_sparsity(config: ScheduleConfig, done: float) -> float:
    """0 (everything) to 1 (the configured averages) at progress `done`."""
    if done < config.dense_share:
        return 0.0
    if config.sparsify_share and done < config.dense_share + config.sparsify_share:
        return (done - config.dense_share) / config.sparsify_share
    return 1.0


def drawn_sparsity(config: ScheduleConfig, done: float, seed: int, step: int) -> float:
    """The sparsity of training step `step` (0, 1, ...): the scheduled one, times the step's draw.

    The draw is a function of seed and step, so a resumed run draws what it would have drawn.
    """
    scheduled = scheduled_sparsity(config, done)
    if config.random_sparsity is None:
        return scheduled
    low, high = config.random_sparsity
    return scheduled * (low + (high - low) * (mix(seed, step, DRAW) / 2**64))
