"""Train a run from its config: a new run, or one that is resumed."""

from .new_run import begin
from .outcome import Outcome
from .resumed_run import begin_or_resume, resume
from .steps import Training

__all__ = ["Outcome", "Training", "begin", "begin_or_resume", "resume"]
