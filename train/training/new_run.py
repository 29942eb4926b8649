"""Train a new run."""

from __future__ import annotations

from ...contract.errors import UserError
from ...contract.files import cannot_write
from ..config.run_config import RunConfig
from ..distillation import teacher_source
from ..distillation.setup import with_teacher
from ..results.lineage import require_parent
from ..run.checkpoints.adapted import write_base
from ..run.folder import Run
from ..run.origin import carry_over, complete_file, read_origin, refuse_itself
from ..run.ranks.lock_over_ranks import held
from ..system.progress import Progress
from ..system.signals import Stopped, StopSignals
from .outcome import Outcome
from .steps import Training


def begin(
    config: RunConfig,
    run: Run,
    *,
    overwrite: bool = False,
    stop_at: int | None = None,
    display: Progress | None = None,
) -> Outcome:
    """Train a new run.

    A folder without a checkpoint, left by a run that died before its first, is replaced.

    Args:
        config: The config of the run.
        run: The folder of the run.
        overwrite: Delete a run that has checkpoints, too.
        stop_at: Stop after this step and save; `resume` continues from there.
        display: Where progress is shown; stderr by default.

    Raises:
        UserError: The run exists and `overwrite` is not given; data, disk or device cannot be used; or the run
            diverged.
    """
    with StopSignals() as signals:
        training = Training(run, signals, display or Progress())
        try:
            if config.lora is not None and config.origin is None:
                raise UserError("lora trains adapters of a run that exists: name it with --from RUN, or leave lora out")
            origin = None if config.origin is None else read_origin(config.origin)
            if origin is not None:
                refuse_itself(run, origin)
            teacher = training.find_teacher(config)
            if teacher is not None:
                teacher_source.refuse_itself(run, teacher)
                config = with_teacher(config, teacher)
            with held(run, training.world):
                training.world.on_rank_zero(lambda: make_way(config, run, overwrite))
                if origin is not None:
                    training.world.on_rank_zero(lambda: carry_over(origin, config, run))
                    if config.lora is not None:
                        digest = complete_file(origin)
                        training.world.on_rank_zero(lambda: write_base(run.path, origin.model_state, digest))
                if teacher is not None:
                    training.world.on_rank_zero(lambda: teacher_source.note_teacher(teacher, run))
                return training.run_from(config, origin=origin, teacher=teacher, stop_at=stop_at)
        except Stopped as stopped:
            training.display.log(f"{stopped}: nothing was trained yet; the same command starts again")
            return Outcome(run, 0, False, exit_code=stopped.exit_code)


def make_way(config: RunConfig, run: Run, overwrite: bool) -> None:
    """Empty the folder of a run that begins.

    Raises:
        UserError: The folder has checkpoints and `overwrite` is not given, the parent cannot be used, or the folder
            cannot be written.
    """
    if run.begun and not overwrite:
        raise UserError(
            f"{run.path} exists already; resume it: {run.resume_command}; or give the new run another "
            "--name; or replace it: the same command with --overwrite"
        )
    require_parent(run, config)
    try:
        run.empty()
    except OSError as error:
        raise cannot_write(run.path, error) from error
