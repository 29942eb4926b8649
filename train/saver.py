"""Saves the checkpoints of a run, and keeps the newest of them and the best."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .best import POINTER, Score, point_at, read_best
from .checkpoint import DamagedCheckpoint, prune, save_checkpoint, verify
from .config import RunConfig
from .progress import Progress
from .run import Run


class Saver:
    """Writes checkpoints, points at the one of the least held-out loss, and deletes those that are neither that one nor
    among the newest `trainer.keep_checkpoints`.

    A checkpoint holds the loss that was measured at its step, so a kill between it and the pointer loses nothing: a
    resumed run points at it again.
    """

    def __init__(self, config: RunConfig, run: Run, display: Progress, saved: Sequence[int], seconds: float) -> None:
        """`saved` are the steps that good checkpoints hold already; `seconds` is what a save is believed to take."""
        self.config, self.run, self.display = config, run, display
        self.saved = list(saved)
        self.seconds = seconds
        self.best = read_best(run.path)
        if self.best is not None and self.best.step not in self.saved:
            self._trust_best(self.best)

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

    def save(
        self,
        step: int,
        model_state: Mapping[str, Tensor],
        optimizer_state: Mapping[str, Tensor],
        state: Mapping[str, Any],
        scored: Score | None,
    ) -> None:
        """Writes the checkpoint of `step`; `scored` is the loss that was measured at it, if one was.

        Raises:
            UserError: it could not be written.
        """
        started = time.monotonic()
        if scored is not None and not scored.beats(None):
            scored = None  # JSON has no word for a loss that is no number
        held = None if scored is None else {"val_loss": scored.val_loss, "tokens": scored.tokens}
        full = {**state, "scored": held}
        save_checkpoint(self.run.checkpoints, step, self.config, model_state, optimizer_state, full)
        self.saved.append(step)
        self.offer(scored)
        trusted = frozenset(self.run.checkpoints / f"step-{each:06d}" for each in self.saved)
        best = None if self.best is None else self.best.place(self.run.path)
        prune(self.run.checkpoints, self.config.trainer.keep_checkpoints, trusted, self.display.say, best)
        self.seconds = time.monotonic() - started

    def offer(self, score: Score | None) -> None:
        """Points at a checkpoint that is saved, if there is none better; None is one that was not scored."""
        if score is not None and score.step in self.saved and score.beats(self.best):
            point_at(self.run.path, score)
            self.best = score
