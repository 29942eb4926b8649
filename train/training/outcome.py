"""The outcome of a training."""

from __future__ import annotations

from dataclasses import dataclass

from ..loop.figures.evaluate import Evaluation
from ..results.verdict import Report
from ..run.folder import Run


@dataclass(frozen=True)
class Outcome:
    """The outcome of a training."""

    run: Run
    step: int
    complete: bool
    """Whether the run reached its end; if not, it can be resumed."""
    evaluation: Evaluation | None = None
    """The evaluation on the whole held-out text, at the end of a run."""
    trained_on: bool = False
    """Whether the held-out text was also trained on, so that its loss only measures how well it is memorised."""
    exit_code: int = 0
    """128 + the number of the signal that ended the training, if one did; 1 if a gate failed."""
    report: Report | None = None
    """The verdicts of the gates; None if the config has no gates or the run is not complete."""
