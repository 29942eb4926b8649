"""Where a run stands: in time, between its first step and its last, and in the schedule of its learning rate."""

from __future__ import annotations

import time

from ..config.run_config import RunConfig
from ..data.corpus import Corpus
from ..optim.batch_size import rate_factor, sequences_between
from ..optim.schedule import WarmUp, multiplier, progress, warm_up
from ..run.counters import Counters
from .lengths import Shape


class Clock:
    """Measures the seconds of a run and says how far it is; what must survive a stop is in the counters.

    `step_seconds` (of the last step) and `save_seconds` (of a save) are what is kept back of the time that was given.
    """

    def __init__(self, config: RunConfig, corpus: Corpus, counters: Counters, save_seconds: float) -> None:
        self.config, self.corpus, self.counters = config, corpus, counters
        self.step_seconds, self.save_seconds = 0.0, save_seconds
        self._before = counters.seconds
        self.standing: dict[str, float] = {}
        """Where the schedule of the learning rate was at the last `rate`, under the names of metrics.jsonl."""
        self.start()

    def start(self) -> None:
        """Counts from now on, beside the seconds before a resume."""
        self._began = time.monotonic()

    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self._before + time.monotonic() - self._began

    def budget(self) -> float | None:
        """Seconds that steps may take: those given, less a step and the last save."""
        limit = self.config.trainer.max_seconds
        return None if limit is None else max(limit - self.step_seconds - self.save_seconds, 1e-3)

    def progress(self) -> float:
        """Where the step to come stands in the run, 0..1."""
        return progress(self.counters.step, self.config.trainer.steps, self.seconds(), self.budget())

    def begins_stage(self, shape: Shape) -> bool:
        """Whether the text changes with this step: a step belongs to the stage of its last window."""
        return self.corpus.stage(shape.last, shape.length)[0] >= shape.first

    def rate(self, done: float, shape: Shape, batch_size: int) -> float:
        """The factor on the learning rates of the step to come, which is at `done` (0..1) of the run."""
        placed, warm = self.place(done, shape)
        self.standing = {"schedule_progress": placed, "warmup": warm.risen}
        trainer, schedule = self.config.trainer, self.config.schedule
        if trainer.batch_schedule or self.config.monitor.act == "batch":
            self.standing["batch_size"] = batch_size
        factor = rate_factor(schedule.batch_rate, batch_size, trainer.batch_size)
        return multiplier(schedule, placed, warm) * factor

    @property
    def is_warm(self) -> bool:
        """Whether the warm-up was over at the last `rate`."""
        return self.standing.get("warmup", 1.0) >= 1

    def place(self, done: float, shape: Shape) -> tuple[float, WarmUp]:
        """Where the learning rate stands (0..1) when the run stands at `done`, and how far its warm-up is.

        That is in the stage, where each has its schedule, and a stage is measured in steps of this size. Called once
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
        assert trainer.steps is not None  # the config has seen to it
        to_come = sequences_between(trainer.batch_size, trainer.batch_schedule, self.counters.step, trainer.steps)
        end = shape.first + to_come
        end = end if after is None else min(end, after // rows * rows)
        return progress(shape.first - first, end - first, width=rows)

    def _warmed(self, shape: Shape) -> float:
        """Share of a warm-up that is counted in steps, tokens or epochs at the middle of the step to come."""
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
        """Whether the run has had its steps or its seconds."""
        steps, budget = self.config.trainer.steps, self.budget()
        return (steps is not None and self.counters.step >= steps) or (budget is not None and self.seconds() >= budget)

    def left(self) -> float | None:
        """About how many seconds there are to go; None while nothing says so."""
        done, here = self.progress(), time.monotonic() - self._began
        left = here * (1 - done) / done if done > 0 and not self._before else None
        budget = self.budget()
        if budget is not None and (left is None or budget - self.seconds() < left):
            left = budget - self.seconds()
        return left
