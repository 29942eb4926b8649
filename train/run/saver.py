"""Saves the checkpoints of a run, and keeps the newest of them and the best."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from ...contract.errors import UserError
from ..config.run_config import RunConfig
from ..system.progress import Progress
from .background_writer import Staging, Writer
from .best import POINTER, Score, point_at, read_best
from .checkpoint import DamagedCheckpoint, prune, save_checkpoint, verify
from .folder import Run


class Saver:
    """Writes checkpoints, points at the one of the least held-out loss, and deletes those that are neither that one nor
    among the newest `trainer.keep_checkpoints`.

    A checkpoint holds the loss that was measured at its step, so a kill between it and the pointer loses nothing: a
    resumed run points at it again.

    With `trainer.save` "background" all of this happens in a thread, from copies; the loop is held up while they are
    made, and while a save before is still being written: none is left out, or which checkpoints a run has, and so
    which is its best, would depend on the speed of the disk. Leaving the context waits for the save in flight.
    """

    def __init__(self, config: RunConfig, run: Run, display: Progress, saved: Sequence[int], seconds: float) -> None:
        """`saved` are the steps that good checkpoints hold already; `seconds` is what a save is believed to take."""
        self.config, self.run, self.display = config, run, display
        self.saved = list(saved)
        self.seconds = seconds
        """What the last save took, from the call until all was on the disk."""
        self._took: dict[str, Any] = {}
        self._told = self._took
        self._staging, self._writer = Staging(), Writer()
        self._begun: tuple[int, float] | None = None
        """Step and time of the save begun last."""
        self.best = read_best(run.path)
        if self.best is not None and self.best.step not in self.saved:
            self._trust_best(self.best)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except UserError as unsaved:
            if error is None:
                raise
            self.display.say(f"warning: {unsaved}")  # what ended the run matters more

    def _trust_best(self, best: Score) -> None:
        """Forgets a best checkpoint that is damaged, or of steps that were lost and are trained again."""
        try:
            verify(best.place(self.run.path))
            if best.step <= max(self.saved, default=0):
                return
            problem = f"{best.place(self.run.path)} is of a step that is trained again"
        except DamagedCheckpoint as error:
            problem = f"damaged checkpoint: {error}"
        self.display.say(f"warning: {problem}; it is no longer the best")
        (self.run.path / POINTER).unlink(missing_ok=True)
        self.best = None

    def has(self, step: int) -> bool:
        """Whether the checkpoint of `step` is written or being written."""
        being_written = self._writer.busy and self._begun is not None and self._begun[0] == step
        return being_written or step in self.saved  # in this order: what is not busy any more has been entered

    def expected_seconds(self) -> float:
        """Seconds after which a save begun now would be on the disk."""
        left = 0.0
        if self._writer.busy and self._begun is not None:
            left = max(0.0, self.seconds - (time.monotonic() - self._begun[1]))
        return self.seconds + left

    def save(
        self,
        step: int,
        model_state: Mapping[str, Tensor],
        optimizer_state: Mapping[str, Tensor],
        state: Mapping[str, Any],
        scored: Score | None,
    ) -> None:
        """Writes the checkpoint of `step`, or begins to; `scored` is the loss that was measured at it, if one was.

        Raises:
            UserError: it could not be written, or the one before, begun in the background, could not.
        """
        started = time.monotonic()
        self.wait()
        if scored is not None and not scored.beats(None):
            scored = None  # JSON has no word for a loss that is no number
        held = None if scored is None else {"val_loss": scored.val_loss, "tokens": scored.tokens}
        full = {**state, "scored": held}
        self._begun = (step, started)
        if self.config.trainer.save == "blocking":
            self._write(step, model_state, optimizer_state, full, scored, started, None)
            return
        model_state = self._staging.copy("model ", model_state)
        optimizer_state = self._staging.copy("optimizer ", optimizer_state)
        full = copy.deepcopy(full)
        loop_held = time.monotonic() - started
        self._writer.start(lambda: self._write(step, model_state, optimizer_state, full, scored, started, loop_held))

    def _write(
        self,
        step: int,
        model_state: Mapping[str, Tensor],
        optimizer_state: Mapping[str, Tensor],
        state: Mapping[str, Any],
        scored: Score | None,
        started: float,
        loop_held: float | None,
    ) -> None:
        """All of a save; `loop_held` is how long it held up the loop, None where it still does."""
        save_checkpoint(self.run.checkpoints, step, self.config, model_state, optimizer_state, state)
        self.saved.append(step)
        self._point(scored)
        trusted = frozenset(self.run.checkpoints / f"step-{each:06d}" for each in self.saved)
        best = None if self.best is None else self.best.place(self.run.path)
        prune(self.run.checkpoints, self.config.trainer.keep_checkpoints, trusted, self.display.say, best)
        self.seconds = time.monotonic() - started
        self._took = {
            "saved_step": step,
            "save_seconds": self.seconds,
            "save_held_seconds": self.seconds if loop_held is None else loop_held,
        }

    def record(self) -> dict[str, Any]:
        """How long the last save took and how long it held up the loop, under the names of metrics.jsonl; each once."""
        took = self._took
        if took is self._told:
            return {}
        self._told = took
        return took

    def check(self) -> None:
        """Raises the UserError of a save in the background that failed, once."""
        self._writer.check()

    def wait(self) -> None:
        """Waits for the save in flight.

        Raises:
            UserError: it could not be written.
        """
        self._writer.wait()

    def offer(self, score: Score | None) -> None:
        """Points at a checkpoint that is saved, if there is none better; None is one that was not scored."""
        self.wait()
        self._point(score)

    def _point(self, score: Score | None) -> None:
        if score is not None and score.step in self.saved and score.beats(self.best):
            point_at(self.run.path, score)
            self.best = score
