"""The records of a run: written into metrics.jsonl, and shown on the live line."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ...config.run_config import RunConfig
from ...data.corpus import Corpus
from ...parallel.world import World
from ...run.counters import Counters
from ...run.ranks.other_ranks import MetricsLog
from ...system.progress import Progress
from ..clock import Clock
from .evaluate import Evaluation
from .heldout import Heldout
from .record import StepResult, record_of, scores


class Records:
    """Makes the record of a step, writes it and shows it."""

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        counters: Counters,
        clock: Clock,
        heldout: Heldout,
        metrics: MetricsLog,
        display: Progress,
        others: Callable[[], Mapping[str, Any]],
    ) -> None:
        """Set up the records of a run.

        Args:
            config: The config of the run.
            corpus: Its text, for the shares of the tasks.
            counters: The progress so far.
            clock: The progress in time and in the schedule.
            heldout: The newest held-out loss.
            metrics: Where records are written.
            display: Where they are shown.
            others: Returns the figures of other parts of the loop; called once for each record.
        """
        self.config, self.corpus, self.counters, self.clock, self.heldout = config, corpus, counters, clock, heldout
        self.metrics, self.display, self.others = metrics, display, others
        self.world = World()
        self._last: dict[str, Any] = {}
        self.start()

    def start(self) -> None:
        """Measure the speed of the next record from now on."""
        self._since, self._tokens = time.monotonic(), self.counters.tokens_seen

    def add(
        self,
        result: StepResult,
        evaluated: Evaluation | None,
        rate: float,
        now: float,
        *,
        where: str | None,
        complete: bool,
    ) -> None:
        """Write and show the record of the last step.

        Args:
            result: The step.
            evaluated: The evaluation after it, if there was one.
            rate: Factor on the learning rates.
            now: When the step ended.
            where: The windows of a step that was skipped.
            complete: Whether the run is complete; then `finish` writes the record, after the last evaluation.
        """
        self._last = self.record(result, evaluated, rate, now, where)
        if not complete:
            self._write(self._last)
        self._show(self._last, force=evaluated is not None or complete)
        self.start()

    def record(
        self, result: StepResult, evaluated: Evaluation | None, rate: float, now: float, where: str | None = None
    ) -> dict[str, Any]:
        """Return one object of metrics.jsonl; arguments as of `add`."""
        return record_of(
            self.counters.step,
            result,
            tokens_per_second=(self.counters.tokens_seen - self._tokens) / max(now - self._since, 1e-9),
            seconds=self.clock.seconds(),
            lr=self.config.optimizer.lr * rate,
            **self.clock.record,
            **self.others(),
            **self._shares(),
            **scores(evaluated),
            **({} if where is None else {"data": where}),
        )

    def finish(self, figures: Mapping[str, Any]) -> None:
        """Write the record of the last step, with figures from the end of the run."""
        if self._last:
            self._write({**self._last, **figures})

    def _write(self, record: Mapping[str, Any]) -> None:
        self.world.run_together(lambda: self.metrics.write(record))

    def _shares(self) -> dict[str, float]:
        """Return the present share of each task in the training windows, under the names of metrics.jsonl."""
        if not self.corpus.has_tasks:
            return {}
        return {
            f"share/{task.name}": share for task, share in zip(self.corpus.tasks, self.corpus.shares(), strict=True)
        }

    def _show(self, record: dict[str, Any], force: bool) -> None:
        """Show the record on the live line, with the newest held-out loss and the time left."""
        shown = {**record, "val_loss": self.heldout.loss}
        steps = self.config.trainer.steps
        self.display.show(shown, f"/{steps}" if steps else "", self.clock.left(), force)
