"""The guard, which skips steps whose loss or gradient is not finite or is a spike."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...contract.errors import UserError
from ..config.trainer import TrainerConfig
from ..optim.optimizer_config import OptimizerConfig
from .divergence import LOSS_NOT_FINITE, lower_rates

HISTORY = 128
SIGMAS = 6.0
LEAST_LOSS = 0.1
"""The least standard deviation of the loss to assume, in nats, so a spike is at least 0.6 nats above the mean. Batches
of a memorised text have losses of 0.2 +- 0.01, among which 0.3 is nothing to worry about."""
LEAST_LOG_NORM = 0.25
"""The same for the logarithm of the norm: a gradient below exp(6 * 0.25) = 4.5 times the usual one is never a spike."""


class Guard:
    """Checks each step by its loss and gradient norm, and ends a run that keeps failing; part of a checkpoint.

    A step is a spike if its loss is more than six standard deviations above the mean of the last 128 accepted steps, or
    the logarithm of its gradient norm is: norms are spread like a log-normal, whose long tail reaches six sigma every
    day. Small values are never spikes. The rule is on by default because it rarely fires: it needs all 128 steps, and
    the least deviations keep a run whose loss hardly moves from calling every harder batch a spike. A skipped batch
    costs its share of an epoch; a spike that is taken can cost the run.
    """

    def __init__(
        self, trainer: TrainerConfig, optimizer: OptimizerConfig, state: Mapping[str, Sequence[Any]] | None = None
    ) -> None:
        """Set up the guard.

        Args:
            trainer: The section that enables skipping of spikes and limits the bad steps in a row.
            optimizer: Its learning rates, for the message that ends a run.
            state: As returned by `state`, from a checkpoint.
        """
        self.skip_spikes, self.max_bad_steps, self.optimizer = trainer.skip_spikes, trainer.max_bad_steps, optimizer
        state = state or {}
        self.losses: deque[float] = deque(state.get("losses", ()), HISTORY)
        self.norms: deque[float] = deque(state.get("norms", ()), HISTORY)
        self.failed: list[str] = [str(each) for each in state.get("failed", ())]
        """The problem and the data of each of the steps that were skipped in a row."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"losses": list(self.losses), "norms": list(self.norms), "failed": self.failed}

    def check(self, loss: float, norm: float | None = None) -> str | None:
        """Return the problem of a step, None if there is none; the norm is unknown before the backward pass."""
        if not math.isfinite(loss):
            return LOSS_NOT_FINITE
        if norm is not None and not math.isfinite(norm):
            return "the gradient is not finite"
        if not self.skip_spikes or len(self.losses) < HISTORY:
            return None
        limit = above(self.losses, LEAST_LOSS)
        if loss > limit:
            return f"the loss {loss:.4g} is a spike: beyond {limit:.4g}, six sigma of the last {HISTORY}"
        limit = math.exp(above([math.log(max(each, 1e-30)) for each in self.norms], LEAST_LOG_NORM))
        if norm is not None and norm > limit:
            return f"the gradient norm {norm:.4g} is a spike: beyond {limit:.4g}, six sigma of the last {HISTORY}"
        return None

    def accept(self, loss: float, norm: float) -> None:
        """Remember a step that was taken, unless it had nothing to learn from."""
        self.failed.clear()
        if norm == 0:
            return
        self.losses.append(loss)
        self.norms.append(norm)

    def reset(self) -> None:
        """Start again without a history: where the text changes, another loss is usual."""
        self.losses.clear()
        self.norms.clear()

    def skip(self, step: int, problem: str, data: str) -> None:
        """Note that step `step` (1, 2, ...) was skipped.

        Raises:
            UserError: It was the last of `max_bad_steps` in a row.
        """
        self.failed.append(f"step {step}: {problem} ({data})")
        if len(self.failed) < self.max_bad_steps:
            return
        first = step - len(self.failed) + 1
        accept_spikes = "" if "finite" in problem else ", or accept spikes (--set trainer.skip_spikes=false)"
        raise UserError(
            f"steps {first} to {step}, {len(self.failed)} in a row, were skipped; the weights are those of step "
            f"{first - 1}:\n  " + "\n  ".join(self.failed) + "\n"
            f"Train again under another --name with lower learning rates ({lower_rates(self.optimizer)})"
            f"{accept_spikes}, or look at the data"
        )


def above(values: Sequence[float] | deque[float], least: float) -> float:
    """Return six standard deviations above the mean, the deviation being at least `least`."""
    return float(np.mean(values) + SIGMAS * max(float(np.std(values)), least))
