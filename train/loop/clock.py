"""The progress of a run: in time, in steps, and in the schedule of its learning rate."""

from __future__ import annotations

import time

from ..config.run_config import RunConfig
from ..data.corpus import Corpus
from ..optim.batch_size import rate_factor, sequences_between
from ..optim.schedule import WarmUp, multiplier, progress, warm_up
from ..run.counters import Counters
from .lengths import Shape


class Clock:
    """Measures the seconds of a run and computes its progress; what must survive a stop is in the counters.

    `step_seconds` (of the last step) and `save_seconds` (of a save) are reserved from the time that the run is given.
    """

    now = staticmethod(time.monotonic)
    """Source of the time, in seconds."""

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        counters: Counters,
        save_seconds: float,
    ) -> None:
        """Start the clock.

        Args:
            config: The config of the run.
            corpus: Its text, whose stages may each have a schedule.
            counters: The progress so far.
            save_seconds: Seconds that a save is expected to take.
        """
        self.config, self.corpus, self.counters = config, corpus, counters
        self.step_seconds, self.save_seconds = 0.0, save_seconds
        self._before = counters.seconds
        self.record: dict[str, float] = {}
        """The progress of the schedule at the last `rate`, under the names of metrics.jsonl."""
        self.start()

    def start(self) -> None:
        """Count from now on, in addition to the seconds before a resume."""
        self._began = self.now()

    def seconds(self) -> float:
        """Return the seconds of training so far, those before a resume included."""
        return self._before + self.now() - self._began

    def budget(self) -> float | None:
        """Return the seconds that steps may take: those of the config less one step and the last save."""
        limit = self.config.trainer.max_seconds
        return None if limit is None else max(limit - self.step_seconds - self.save_seconds, 1e-3)

    def progress(self) -> float:
        """Return the progress of the run before the next step, 0..1."""
        return progress(self.counters.step, self.config.trainer.steps, self.seconds(), self.budget())

    def begins_stage(self, shape: Shape) -> bool:
        """Return whether a stage of the text begins with this step, which belongs to the stage of its last window."""
        return self.corpus.stage(shape.last, shape.length)[0] >= shape.first

    def rate(self, done: float, shape: Shape, batch_size: int) -> float:
        """Return the factor on the learning rates of the next step, at progress `done` (0..1) of the run."""
        placed, warm = self.place(done, shape)
        self.record = {"schedule_progress": placed, "warmup": warm.risen}
        trainer, schedule = self.config.trainer, self.config.schedule
        if trainer.batch_schedule or self.config.monitor.act == "batch":
            self.record["batch_size"] = batch_size
        factor = rate_factor(schedule.batch_rate, batch_size, trainer.batch_size)
        return multiplier(schedule, placed, warm) * factor

    @property
    def is_warm(self) -> bool:
        """Whether the warm-up was over at the last `rate`."""
        return self.record.get("warmup", 1.0) >= 1

    def place(self, done: float, shape: Shape) -> tuple[float, WarmUp]:
        """Return the progress of the schedule (0..1) and of its warm-up, at progress `done` of the run.

        If each stage has its own schedule, they are relative to the stage, measured in steps of this size. Call it once
        before each step, since it notes where a warm-up ends.
        """
        config, counters = self.config.schedule, self.counters
        if config.each_stage:
            if self.begins_stage(shape):
                counters.stage_step, counters.warm_at = counters.step, None
            done = self._progress_in_stage(shape)
        if config.warmup_share is not None:
            return done, warm_up(config, done)
        risen = min(self._warmed(shape), 1.0)
        if risen >= 1 and counters.warm_at is None:
            counters.warm_at = done
        return done, WarmUp(risen, counters.warm_at or 0.0)

    def _progress_in_stage(self, shape: Shape) -> float:
        rows, trainer = shape.batch_size, self.config.trainer
        first, after = self.corpus.stage(shape.last, shape.length)
        first = first // rows * rows
        assert trainer.steps is not None  # the config requires it
        to_come = sequences_between(trainer.batch_size, trainer.batch_schedule, self.counters.step, trainer.steps)
        end = shape.first + to_come
        end = end if after is None else min(end, after // rows * rows)
        return progress(shape.first - first, end - first, width=rows)

    def _warmed(self, shape: Shape) -> float:
        """Return how much of a warm-up counted in steps, tokens or epochs is done in the middle of the next step."""
        config, counters = self.config.schedule, self.counters
        if config.warmup_steps is not None:
            return (counters.step - counters.stage_step + 0.5) / config.warmup_steps
        rows, length = shape.batch_size, shape.length
        if config.each_stage:
            stage_first = self.corpus.stage(shape.last, length)[0]
            read, epochs = float(shape.first - stage_first), self.corpus.epoch(stage_first, length)
        else:
            read, epochs = counters.tokens_seen / length, self.corpus.epoch(0, length)
        if config.warmup_tokens is not None:
            return (read + 0.5 * rows) * length / config.warmup_tokens
        assert config.warmup_epochs is not None
        return (read + 0.5 * rows) / epochs / config.warmup_epochs

    def complete(self) -> bool:
        """Return whether the run has had all its steps or seconds."""
        steps, budget = self.config.trainer.steps, self.budget()
        return (steps is not None and self.counters.step >= steps) or (budget is not None and self.seconds() >= budget)

    def left(self) -> float | None:
        """Return about how many seconds are left; None while that is unknown."""
        done, here = self.progress(), self.now() - self._began
        left = here * (1 - done) / done if done > 0 and not self._before else None
        budget = self.budget()
        if budget is not None and (left is None or budget - self.seconds() < left):
            left = budget - self.seconds()
        return left
