"""The `schedule:` section of a run's config."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ..system.section import Section
from .batch_size import Rule

WARM_UPS = ("warmup_share", "warmup_steps", "warmup_tokens", "warmup_epochs")
WARM_UP_SHARE = 0.03


class ScheduleConfig(Section):
    """Course of the learning rates and of the sparsity over a run."""

    kind: Literal["wsd", "cosine", "constant", "sgdr"] = "wsd"
    """Shape of the learning rate after the warm-up. `wsd`: stable, then decay (MiniCPM, arXiv 2404.06395), for a run
    that may be made longer. `cosine`: half a cosine, one cycle of `sgdr`, for a run of fixed length. `sgdr`: cosines
    that restart (Loshchilov and Hutter, arXiv 1608.03983), for text in stages or several good ends in one run.
    `constant`: no decay, for runs without a known end and runs that are compared step by step."""
    warmup: Literal["linear", "exponential"] = "linear"
    """Shape of the warm-up. `linear` (Goyal et al. 2017, arXiv 1706.02677) is what published recipes mean.
    `exponential` rises by equal factors from a thousandth: gentler on weights before the routers have settled."""
    warmup_share: float | None = Field(None, ge=0, le=1)
    """Length of the warm-up as a share of the run, 0 to 1; 0.03 where no warm-up is given."""
    warmup_steps: int | None = Field(None, ge=1, lt=2**63)
    """Length of the warm-up in steps, 1 or more, in place of a share: for a published recipe that counts in steps, or a
    run that ends by the clock and whose first steps must be the same on any machine."""
    warmup_tokens: int | None = Field(None, ge=1, lt=2**63)
    """Length of the warm-up in tokens, 1 or more, in place of a share: to compare runs with different batch sizes."""
    warmup_epochs: float | None = Field(None, gt=0)
    """Length of the warm-up in passes over the training text, above 0, in place of a share. Where sources follow one
    another, passes over the first source."""
    each_stage: bool = False
    """Whether the learning rate's schedule starts again with each source. Needs sources with `epochs`."""
    decay_share: float = Field(0.6, ge=0, le=1)
    """Share of the run, at its end, over which `wsd` falls linearly; 0 to 1."""
    restart_period: float = Field(1 / 7, ge=1e-3, le=1)
    """Length of the first cosine of `sgdr`, as a share of the run after the warm-up; 0.001 to 1."""
    restart_multiplier: float = Field(2.0, gt=0, le=1000)
    """Length of each cosine of `sgdr` relative to the one before, above 0 to 1000. A period of 1/7 and a multiplier of
    2 make three cosines that fill the run."""
    final_share: float = Field(0.0, ge=0, le=1)
    """Learning rate at the end of the run, and before each restart, as a share of the peak; 0 to 1."""
    dense_share: float = Field(0.0, ge=0, le=1)
    """Share of the run, at its start, in which every token uses all experts, heads and layers; 0 to 1."""
    sparsify_share: float = Field(0.0, ge=0, le=1)
    """Share of the run, after `dense_share`, over which the model goes linearly from everything to the configured
    averages; 0 to 1."""
    batch_rate: Rule = "none"
    """Effect of a change of the batch size on every learning rate. `linear`: proportional (Goyal et al. 2017, arXiv
    1706.02677), for SGD and batches far below the noise scale. `sqrt`: proportional to the square root (Krizhevsky
    2014, arXiv 1404.5997; Malladi et al. 2022, arXiv 2205.10287), for Adam and Muon. `none`: no effect, where the
    larger batch replaces a lower rate (Smith et al. 2017, arXiv 1711.00489)."""
    random_sparsity: tuple[float, float] | None = None
    """Range of a random factor on the sparsity of each step, drawn uniformly; two numbers of 0 or more, the smaller
    first. A factor of 0 uses everything, 1 the configured averages, above 1 less. It widens the range of the compute
    dial and costs loss at the configured averages; null draws none."""

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
        place = place_in_cycle(1 - 1e-6, self.restart_period, self.restart_multiplier)
        if self.kind == "sgdr" and place < 0.95:
            fitting = nearest_period(self.restart_period, self.restart_multiplier)
            raise ValueError(
                f"restart_period {self.restart_period:g} and restart_multiplier {self.restart_multiplier:g} cut the "
                f"last cosine off at {place:.0%}, so the run would end at a high learning rate; a period of "
                f"{fitting:.6g} fits"
            )
        if self.dense_share + self.sparsify_share > 1:
            raise ValueError(
                f"dense_share ({self.dense_share:g}) and sparsify_share ({self.sparsify_share:g}) are together more "
                "than the whole run; make them at most 1"
            )
        if self.random_sparsity is not None:
            low, high = self.random_sparsity
            if not 0 <= low <= high:
                raise ValueError(
                    f"random_sparsity is {[low, high]}; expected two numbers from 0 up, the smaller first, as in "
                    "[0.5, 1.5]"
                )
        return self

    @property
    def moves_sparsity(self) -> bool:
        """Whether the sparsity is ever different from 1."""
        return bool(self.dense_share or self.sparsify_share or self.random_sparsity)


def place_in_cycle(after: float, period: float, factor: float) -> float:
    """Return how far (0..1) the cycle at `after` (0..1) is; cycles last period, period * factor, period * factor^2, ...

    A function of the run's progress alone, so there is no counter of restarts to save. Cycles that shrink never fill
    the run: the last one of at least a thousandth of the run stays at its end.
    """
    start = 0.0
    while after >= start + period * (1 - 1e-9):
        if start + period >= 1 - 1e-9 or period * factor < 1e-3:
            return 1.0
        start, period = start + period, period * factor
    return (after - start) / period


def nearest_period(period: float, factor: float) -> float:
    """Return the period nearest to `period` with which a whole number of cycles fills the run."""
    fitting = [1 / sum(factor**cycle for cycle in range(number)) for number in range(1, 33)]
    return min(fitting, key=lambda each: abs(each - period))
