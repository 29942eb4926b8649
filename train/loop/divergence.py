"""Runs that diverged: their loss or their weights are not finite, so their last checkpoint is of no use."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...contract.errors import UserError
from ..optim.optimizer_config import OptimizerConfig
from ..run.checkpoints.best import read_best
from ..run.folder import RUNS, Run

if TYPE_CHECKING:
    from torch import Tensor  # only its type: a list of runs loads no torch

    from ..config.run_config import RunConfig

LOSS_NOT_FINITE = "the loss is not finite"
"""The guard's description of a step without a finite loss."""


def steps_without_loss(failed: Sequence[str]) -> int:
    """Count the steps at the end of `failed` (the guard's skipped steps in a row) whose loss was not finite."""
    count = 0
    for problem in reversed(failed):
        if LOSS_NOT_FINITE not in problem:
            break
        count += 1
    return count


def divergence(state: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str | None:
    """Describe how a run diverged that has come to its end; None if it did not.

    Args:
        state: State of the checkpoint at its end: `step`, and `guard` with the steps that were skipped last.
        records: Records of metrics.jsonl. A number that is not finite is null there, and only a record with an
            evaluation has the key `perplexity`.
    """
    step, guard = int(state["step"]), state.get("guard") or {}
    count = steps_without_loss(guard.get("failed", ()))
    problems = [f"{LOSS_NOT_FINITE} from step {step - count + 1} on"] if count else []
    evaluated = [record for record in records if "perplexity" in record]
    if evaluated and evaluated[-1].get("val_loss") is None:
        problems.append(f"the held-out loss is not finite at step {evaluated[-1]['step']}")
    return ", and ".join(problems) or None


def require_convergence(
    run: Run, state: Mapping[str, Any], records: Sequence[Mapping[str, Any]], config: RunConfig
) -> None:
    """Raise UserError if a run that has come to its end diverged; arguments as for `divergence`."""
    problem = divergence(state, records)
    if problem is not None:
        raise divergence_error(run, config, problem)


def all_finite(weights: Iterable[Tensor]) -> bool:
    """Return whether no weight is NaN or infinite."""
    return all(bool(weight.isfinite().all()) for weight in weights)


def divergence_error(run: Run, config: RunConfig, problem: str, step: int | None = None) -> UserError:
    """Make the error for a run that diverged, with what to type next.

    Args:
        run: The folder of the run.
        config: Its learning rates and the size of its vocabulary.
        problem: What is not finite, and since when.
        step: The checkpoint with the problem, which is not recommended.
    """
    best = read_best(run.path)
    cure = (
        "Train it again with lower learning rates: the command that began it, with --overwrite "
        f"{lower_rates(config.optimizer)}"
    )
    # A model that does no better than equal chances for all tokens has learned nothing, and rarely passes the export.
    if best is not None and best.step != step and best.val_loss < math.log(config.model.vocab_size):
        name = run.name if run.path == RUNS / run.name else run.path
        cure += (
            f"; or export the checkpoint of step {best.step}, whose held-out loss is {best.val_loss:.4f}: "
            f"adaptive export {name} --checkpoint best"
        )
    return UserError(f"{run.path} diverged: {problem}. {cure}")


def lower_rates(optimizer: OptimizerConfig) -> str:
    """Write the settings that lower the learning rates: half of them, and no more than the defaults."""
    names = ("adamw_matrix_lr" if optimizer.kind == "adamw" else "lr", "adamw_lr")
    usual = OptimizerConfig(kind=optimizer.kind)
    rates = {name: min(getattr(optimizer, name) / 2, getattr(usual, name)) for name in names}
    return " ".join(f"--set optimizer.{name}={rate:g}" for name, rate in rates.items())
