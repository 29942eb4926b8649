"""Resume a run from its newest good checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...contract.errors import UserError
from ...contract.file_names import CONFIG
from ..config.run_config import RunConfig, make_config
from ..loop.divergence import require_convergence
from ..parallel.world import World
from ..results.lineage import require_parent
from ..results.verdict import exit_code_of, has_report, read_report
from ..run.checkpoints.checkpoint import set_aside
from ..run.checkpoints.names import list_checkpoints
from ..run.differences import require_same
from ..run.folder import Run
from ..run.metrics import read_metrics
from ..run.ranks.lock_over_ranks import held, newest
from ..system.progress import Progress
from ..system.signals import Stopped, StopSignals
from .new_run import begin
from .outcome import Outcome
from .steps import Training


def begin_or_resume(
    config: RunConfig, run: Run, overrides: Iterable[Mapping[str, Any]] = (), *, stop_at: int | None = None
) -> Outcome:
    """Resume a run that has a checkpoint, begin one that has none: for jobs that are restarted."""
    if World().broadcast_float(bool(list_checkpoints(run.checkpoints))):
        return resume(run, overrides, stop_at=stop_at)
    return begin(config, run, overwrite=True, stop_at=stop_at)


def resume(
    run: Run,
    overrides: Iterable[Mapping[str, Any]] = (),
    *,
    stop_at: int | None = None,
    override: bool = False,
    display: Progress | None = None,
) -> Outcome:
    """Continue a run from its newest good checkpoint, exactly as if it had not stopped.

    Args:
        run: The folder of the run.
        overrides: Settings that differ from those of the checkpoint.
        stop_at: Stop after this step and save.
        override: Also accept settings that change what the rest of the run computes, such as learning rates.
        display: Where progress is shown; stderr by default.

    Raises:
        UserError: There is nothing to resume; every checkpoint is damaged; config, text or tokenizer differ from those
            the run began with; or the run diverged.
    """
    if not run.path.is_dir():
        raise UserError(f"there is no run {run.path} to resume; begin it: the same command without --resume")
    with StopSignals() as signals:
        training = Training(run, signals, display or Progress())
        world, display = training.world, training.display
        try:
            with held(run, world):
                checkpoint = newest(run, world, display)
                if checkpoint is None:
                    raise no_checkpoint(run)
                config = make_config(checkpoint.config.model_dump(mode="json"), overrides)
                if checkpoint.state.get("imported") and config != checkpoint.config:
                    raise UserError(
                        f"{run.path} was imported, so it has no training to resume; train a new run from it: adaptive "
                        f"train --from {run.name} --data FILE --name NAME"
                    )
                overridden = require_same(run, checkpoint.config, config, override)
                for key, (before, after) in overridden.items():
                    display.log(f"note: {key} was {before!r} and is {after!r} from step {checkpoint.step} on")
                ended = bool(checkpoint.state.get("complete")) and ends(checkpoint.config) == ends(config)
                if ended:
                    records = read_metrics(run.path / "metrics.jsonl")
                    require_convergence(run, checkpoint.state, records, config)
                if ended and (not config.gates.asked or has_report(run.path, config)):
                    display.log(
                        f"{run.path} is complete at step {checkpoint.step}; to continue, give more --steps or "
                        "--max-seconds"
                    )
                    report = read_report(run.path) if config.gates.asked else None
                    return Outcome(run, checkpoint.step, True, exit_code=exit_code_of(report), report=report)
                world.on_rank_zero(lambda: require_parent(run, config))
                set_aside(checkpoint.damaged)  # only the first rank knows of any
                teacher = None if ended else training.find_teacher(config)
                return training.run_from(
                    config, checkpoint, teacher=teacher, stop_at=stop_at, ended=ended, overridden=overridden
                )
        except Stopped as stopped:
            display.log(f"{stopped}: nothing new was trained; resume with: {run.resume_command}")
            return Outcome(run, 0, False, exit_code=stopped.exit_code)


def no_checkpoint(run: Run) -> UserError:
    """Make the error for a run that cannot be resumed since it died before its first checkpoint."""
    again = f"adaptive train {run.path / CONFIG} --name {run.name}"
    if not (run.path / CONFIG).is_file():
        again = "the same command without --resume"
    return UserError(f"{run.path} has no checkpoint, so there is nothing to resume; begin it again: {again}")


def ends(config: RunConfig) -> tuple[int | None, float | None]:
    """Return where the run ends: its steps and its seconds."""
    return config.trainer.steps, config.trainer.max_seconds
