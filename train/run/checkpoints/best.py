"""The checkpoint of a run with the lowest held-out loss: best.json, a pointer in the run's folder."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from ....contract.errors import UserError
from ....contract.files import cannot_write, write_whole
from .names import COMPLETE, checkpoint_name, list_checkpoints, step_of

POINTER = "best.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Score:
    """The held-out loss of the checkpoint of a step."""

    step: int
    val_loss: float
    tokens: int
    """Held-out tokens that were requested: losses over different numbers of tokens do not compare."""

    def place(self, run: Path) -> Path:
        """Return the folder of the checkpoint."""
        return run / "checkpoints" / checkpoint_name(self.step)

    def beats(self, other: Score | None) -> bool:
        """Return whether this one should replace `other` as the best."""
        if not math.isfinite(self.val_loss):
            return False
        return other is None or self.tokens != other.tokens or self.val_loss < other.val_loss


def read_best(run: Path) -> Score | None:
    """Read the best checkpoint of the run in the folder `run`; None if there is none or its folder is gone."""
    try:
        content = json.loads((run / POINTER).read_bytes())
        if content.pop("format_version") != FORMAT_VERSION:
            return None
        score = Score(int(content["step"]), float(content["val_loss"]), int(content["tokens"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return score if (score.place(run) / COMPLETE).exists() else None


def checkpoint_of(run: Path, which: str) -> Path:
    """Return the folder of a run's checkpoint: `best`, or the step of one; `last` is the folder of the run.

    Raises:
        UserError: the run has no such checkpoint; the message lists those it has.
    """
    if which == "last":
        return run
    checkpoints = list_checkpoints(run / "checkpoints")
    if which == "best":
        best = read_best(run)
        if best is not None:
            return best.place(run)
    elif which.isdigit():
        for path in checkpoints:
            if step_of(path) == int(which):
                return path
    else:
        raise UserError(f"--checkpoint {which!r}: expected best, last, or the step of a checkpoint")
    steps = ", ".join(str(step_of(path)) for path in checkpoints)
    present = f"it has checkpoints of steps {steps}" if steps else "it has none at all"
    missing = "best checkpoint: none was scored" if which == "best" else f"checkpoint of step {which}"
    raise UserError(f"{run} has no {missing}; {present}" + ("; --checkpoint last takes the newest" if steps else ""))


def point_at(run: Path, best: Score) -> None:
    """Make `best` the best checkpoint of the run; a reader sees the old pointer or the new one.

    Raises:
        UserError: the pointer cannot be written; the old pointer and all checkpoints are intact.
    """
    path = run / POINTER
    try:
        write_whole(path, json.dumps({"format_version": FORMAT_VERSION, **asdict(best)}, allow_nan=False) + "\n")
    except OSError as error:
        raise cannot_write(path, error, "The checkpoints are intact") from error
