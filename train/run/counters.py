"""The counters of a run."""

from dataclasses import dataclass, field


@dataclass
class Counters:
    """The progress of a run; part of every checkpoint."""

    step: int = 0
    """Steps taken or skipped."""
    tokens_seen: int = 0
    """Tokens in the batches of these steps."""
    seconds: float = 0.0
    """Seconds of training."""
    bad_steps: int = 0
    """Steps skipped because a loss or gradient was not finite, or a spike."""
    stage_step: int = 0
    """Step at which the learning rate's schedule began: 0, or the first of the stage."""
    warm_at: float | None = None
    """Progress of that schedule, 0..1, at the end of its warm-up; only if the warm-up is not given as a share."""
    growth: int = 1
    """Factor by which the monitor has enlarged the batch."""
    windows: list[int] = field(default_factory=list)
    """Windows read so far of each sequence length, in the order in which the config names them."""
    tokens_digest: str = ""
    """Digest of all batches so far, those of skipped steps included: see loop/data_digest.py. Checkpoints of the first
    releases have none; a run that resumes from one has the digest of the steps since."""
