"""Where a run stands: in time, between its first step and its last, and in the schedule of its learning rate."""

from __future__ import annotations

import time

from .config import RunConfig
from .data.corpus import Corpus
from .lengths import Shape
from .record import Counters
from .schedule import progress


class Clock:
    """Measures the seconds of a run and says how far it is; what must survive a stop is in the counters.

    `step_seconds` (of the last step) and `save_seconds` (of a save) are what is kept back of the time that was given.
    """

    def __init__(self, config: RunConfig, corpus: Corpus, counters: Counters, save_seconds: float) -> None:
        self.config, self.corpus, self.counters = config, corpus, counters
        self.step_seconds, self.save_seconds = 0.0, save_seconds
        self._before = counters.seconds
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

    def progress_of_rate(self, done: float, shape: Shape) -> float:
        """Where the learning rate stands when the run stands at `done`: in the stage, where each has its schedule.

        A step belongs to the stage of its last window, and a stage is measured in steps of this size.
        """
        if not self.config.schedule.each_stage:
            return done
        rows = shape.batch_size
        first, after = self.corpus.stage(shape.last, shape.length)
        first = first // rows * rows
        steps = self.config.trainer.steps
        assert steps is not None  # the config has seen to it
        end = shape.first + (steps - self.counters.step) * rows
        end = end if after is None else min(end, after // rows * rows)
        return progress(shape.first - first, end - first, width=rows)

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
