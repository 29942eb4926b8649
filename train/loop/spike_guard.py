"""Which steps are taken: not those whose loss or gradient is not finite, nor those far beyond what was usual."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...contract.errors import UserError
from ..config.run_config import RunConfig

HISTORY = 128
SIGMAS = 6.0
LEAST_LOSS = 0.1
"""Nats that a standard deviation of the loss counts as at least: a spike lies 0.6 nats above the usual or more. Text
that is known by heart has batches of 0.2 +- 0.01, among which 0.3 is nothing to worry about."""
LEAST_LOG_NORM = 0.25
"""The same for the logarithm of the norm: a gradient is never a spike below exp(6 * 0.25) = 4.5 times the usual one."""


class Guard:
    """Judges each step by its loss and gradient norm, and ends a run that goes on failing; part of a checkpoint.

    A step is a spike when its loss lies more than six standard deviations above the mean of the last 128 accepted, or
    the logarithm of its gradient norm does: norms are spread like a log-normal, and six sigma of a long tail are
    reached every day. Small steps are never spikes. The rule is on by default because it is slow to speak: it needs all
    128, and floors keep a run whose loss hardly moves from calling every harder batch a spike. A skipped batch costs
    its share of an epoch; a spike that is taken can cost the run.
    """

    def __init__(self, config: RunConfig, state: Mapping[str, Sequence[float]] | None = None) -> None:
        self.config = config
        state = state or {}
        self.losses = deque(state.get("losses", ()), HISTORY)
        self.norms = deque(state.get("norms", ()), HISTORY)
        self.failed: list[str] = []
        """What was wrong with the steps skipped in a row, and their data."""
        self.failed += [str(each) for each in state.get("failed", ())]

    def state(self) -> dict[str, Any]:
        return {"losses": list(self.losses), "norms": list(self.norms), "failed": self.failed}

    def judge(self, loss: float, norm: float | None = None) -> str | None:
        """What is wrong with a step, None if nothing; the norm is not known before the backward pass."""
        if not math.isfinite(loss):
            return "the loss is not finite"
        if norm is not None and not math.isfinite(norm):
            return "the gradient is not finite"
        if not self.config.trainer.skip_spikes or len(self.losses) < HISTORY:
            return None
        limit = above(self.losses, LEAST_LOSS)
        if loss > limit:
            return f"the loss {loss:.4g} is a spike: beyond {limit:.4g}, six sigma of the last {HISTORY}"
        limit = math.exp(above([math.log(max(each, 1e-30)) for each in self.norms], LEAST_LOG_NORM))
        if norm is not None and norm > limit:
            return f"the gradient norm {norm:.4g} is a spike: beyond {limit:.4g}, six sigma of the last {HISTORY}"
        return None

    def accept(self, loss: float, norm: float) -> None:
        """Remembers a step that was taken, unless it had nothing to learn from."""
        self.failed.clear()
        if norm == 0:
            return
        self.losses.append(loss)
        self.norms.append(norm)

    def forget(self) -> None:
        """Starts again without history, as where the text changes and another loss is usual."""
        self.losses.clear()
        self.norms.clear()

    def refuse(self, step: int, problem: str, data: str) -> None:
        """Notes that step `step` (1, 2, ...) was skipped.

        Raises:
            UserError: it was the last of `max_bad_steps` in a row.
        """
        self.failed.append(f"step {step}: {problem} ({data})")
        if len(self.failed) < self.config.trainer.max_bad_steps:
            return
        first, rates = step - len(self.failed) + 1, self.config.optimizer
        kept = "" if "finite" in problem else ", let them through (--set trainer.skip_spikes=false)"
        raise UserError(
            f"steps {first} to {step}, {len(self.failed)} in a row, could not be taken; the weights are those of step "
            f"{first - 1}:\n  " + "\n  ".join(self.failed) + "\n"
            f"Under another --name, lower the learning rates (--set optimizer.lr={rates.lr / 2:g} --set "
            f"optimizer.adamw_lr={rates.adamw_lr / 2:g}){kept}, or look at the data"
        )


def above(values: Sequence[float] | deque[float], least: float) -> float:
    """Six standard deviations above the mean, the deviation being at least `least`."""
    return float(np.mean(values) + SIGMAS * max(float(np.std(values)), least))
