"""Saves the checkpoints of a run, and keeps the newest of them and the best."""

import copy
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from ....contract.errors import UserError
from ...config.run_config import RunConfig
from ...system.progress import Progress
from ..folder import Run
from .background_writer import Staging, Writer
from .best import POINTER, Score, point_at, read_best
from .checkpoint import DamagedCheckpoint, prune, save_checkpoint, verify
from .names import checkpoint_name


class Saver:
    """Writes checkpoints, marks the best one, and deletes old ones.

    The best has the lowest held-out loss. It and the newest `trainer.keep_checkpoints` are kept. A checkpoint holds the
    loss that was measured at its step, so a kill between it and the pointer loses nothing: a resumed run sets the
    pointer again.

    With `trainer.save` "background" all of this happens in a thread, from copies. The loop waits while they are made,
    and while an earlier save is still being written: no save is left out, or the checkpoints of a run, and its best,
    would depend on the speed of the disk. Leaving the context waits for the save in flight.
    """

    def __init__(self, config: RunConfig, run: Run, display: Progress, saved: Sequence[int], seconds: float) -> None:
        """Take over the run's checkpoints.

        Args:
            config: the whole config, which is part of every checkpoint.
            run: the run, which is locked.
            display: where warnings are logged.
            saved: steps of the good checkpoints.
            seconds: estimate of the time of a save.
        """
        self.config, self.run, self.display = config, run, display
        self.saved = list(saved)
        self.seconds = seconds
        """Seconds of the last save, from the call until all was on the disk."""
        self._took: dict[str, Any] = {}
        self._recorded = self._took
        self._staging, self._writer = Staging(), Writer()
        self._begun: tuple[int, float] | None = None
        """Step and start time of the last save."""
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
            self.display.log(f"warning: {unsaved}")  # the error that ended the run matters more

    def _trust_best(self, best: Score) -> None:
        """Drop a best checkpoint that is damaged, or of a lost step that is trained again."""
        try:
            verify(best.place(self.run.path))
            if best.step <= max(self.saved, default=0):
                return
            problem = f"{best.place(self.run.path)} is of a step that is trained again"
        except DamagedCheckpoint as error:
            problem = f"damaged checkpoint: {error}"
        self.display.log(f"warning: {problem}; it is no longer the best")
        (self.run.path / POINTER).unlink(missing_ok=True)
        self.best = None

    @property
    def busy(self) -> bool:
        """Whether a save in the background is being written."""
        return self._writer.busy

    def has(self, step: int) -> bool:
        """Return whether the checkpoint of `step` is written or being written."""
        being_written = self._writer.busy and self._begun is not None and self._begun[0] == step
        return being_written or step in self.saved  # in this order: a save that is no longer busy is in `saved`

    def expected_seconds(self) -> float:
        """Return the seconds until a save begun now would be on the disk."""
        remaining = 0.0
        if self._writer.busy and self._begun is not None:
            remaining = max(0.0, self.seconds - (time.monotonic() - self._begun[1]))
        return self.seconds + remaining

    def save(
        self,
        step: int,
        model_state: Mapping[str, Tensor],
        optimizer_state: Mapping[str, Tensor],
        state: Mapping[str, Any],
        scored: Score | None,
    ) -> None:
        """Write the checkpoint of `step`, or begin to; `scored` is the loss measured at it, if any.

        Raises:
            UserError: it could not be written, or the one before, begun in the background, could not.
        """
        started = time.monotonic()
        self.wait()
        if scored is not None and not scored.beats(None):
            scored = None  # JSON has no number that is not finite
        record = None if scored is None else {"val_loss": scored.val_loss, "tokens": scored.tokens}
        full = {**state, "scored": record}
        self._begun = (step, started)
        if self.config.trainer.save == "blocking":
            self._write(step, model_state, optimizer_state, full, scored, started, None)
            return
        model_state = self._staging.copy("model ", model_state)
        optimizer_state = self._staging.copy("optimizer ", optimizer_state)
        full = copy.deepcopy(full)
        blocked = time.monotonic() - started
        self._writer.start(lambda: self._write(step, model_state, optimizer_state, full, scored, started, blocked))

    def _write(
        self,
        step: int,
        model_state: Mapping[str, Tensor],
        optimizer_state: Mapping[str, Tensor],
        state: Mapping[str, Any],
        scored: Score | None,
        started: float,
        blocked: float | None,
    ) -> None:
        """Do all of a save; `blocked` is how long the loop waited for it in seconds, None if it still does."""
        save_checkpoint(self.run.checkpoints, step, self.config, model_state, optimizer_state, state)
        self.saved.append(step)
        self._point(scored)
        trusted = frozenset(self.run.checkpoints / checkpoint_name(each) for each in self.saved)
        best = None if self.best is None else self.best.place(self.run.path)
        prune(self.run.checkpoints, self.config.trainer.keep_checkpoints, trusted, self.display.log, best)
        self.seconds = time.monotonic() - started
        self._took = {
            "saved_step": step,
            "save_seconds": self.seconds,
            "save_held_seconds": self.seconds if blocked is None else blocked,
        }

    def record(self) -> dict[str, Any]:
        """Return how long the last save took and blocked the loop, under the names of metrics.jsonl; each save once."""
        took = self._took
        if took is self._recorded:
            return {}
        self._recorded = took
        return took

    def check(self) -> None:
        """Raise the UserError of a failed save in the background, once."""
        self._writer.check()

    def wait(self) -> None:
        """Wait for the save in flight.

        Raises:
            UserError: the checkpoint could not be written.
        """
        self._writer.wait()

    def offer(self, score: Score | None) -> None:
        """Make a saved checkpoint the best if none is better; None is a checkpoint without a loss."""
        self.wait()
        self._point(score)

    def _point(self, score: Score | None) -> None:
        if score is not None and score.step in self.saved and score.beats(self.best):
            point_at(self.run.path, score)
            self.best = score
