"""Where a run stands; part of every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Counters:
    """Where a run stands; part of every checkpoint."""

    step: int = 0
    tokens_seen: int = 0
    seconds: float = 0.0
    bad_steps: int = 0
    """Steps skipped in all because a loss or gradient was not finite, or a spike."""
    stage_step: int = 0
    """The step at which the schedule of the learning rate began: 0, or that of the stage."""
    warm_at: float | None = None
    """Where that schedule was, 0..1, when its warm-up had ended; only where that is not counted in shares."""
    growth: int = 1
    """How many times its usual size a batch is, by the monitor's doing."""
    windows: list[int] = field(default_factory=list)
    """Windows read so far of each sequence length, in the order in which the config names them."""
    tokens_digest: str = ""
    """Of all batches so far, those of skipped steps included: see stream.py. A checkpoint from before it was kept has
    none, and a run that goes on from it has that of the steps since."""
