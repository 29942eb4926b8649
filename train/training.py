"""Train a run from its config: everything around the loop, in the order in which it happens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..contract.errors import UserError
from ..contract.file_names import CONFIG
from ..contract.files import cannot_write
from .config.run_config import RunConfig, make_config
from .data import Corpus, prepare
from .distillation import teacher_source
from .distillation.setup import make_distiller, with_teacher
from .distillation.teacher_source import TeacherSource, read_teacher
from .loop.divergence import require_convergence
from .loop.figures.evaluate import Evaluation
from .loop.lengths import Lengths
from .loop.setup.assembly import assemble
from .loop.setup.completion import with_end, with_vocabulary
from .loop.setup.matmul_backend import kernels_message, settle_matmul
from .loop.setup.run_files import require_space, write_beside
from .loop.trainer import Trainer
from .parallel.world import World, require_division
from .results.examine import examine
from .results.lineage import require_parent
from .results.verdict import REPORT, Report, exit_code_of, has_report, read_report
from .run.checkpoints.adapted import write_base
from .run.checkpoints.checkpoint import Checkpoint, clean, set_aside
from .run.checkpoints.names import list_checkpoints
from .run.differences import require_same
from .run.folder import Run
from .run.identity import compare_identity, identity_of, refuse_other_data
from .run.metrics import open_metrics, read_metrics
from .run.origin import carry_over, complete_file, given_tokenizer, read_origin, refuse_itself
from .run.ranks.lock_over_ranks import held, newest
from .run.ranks.other_ranks import NullMetrics
from .run.trackers import load
from .system.cache_folder import cache_folder
from .system.device import choose_device, choose_precision, versions
from .system.progress import Progress
from .system.signals import Stopped, StopSignals


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


@dataclass(frozen=True)
class Prepared:
    """The data and settings of a training before the model is built."""

    config: RunConfig
    """With everything filled in that follows from the text."""
    corpus: Corpus
    device: torch.device
    identity: dict[str, Any]
    """The record of the data and the machine in every checkpoint."""
    libraries: Mapping[str, Any]
    """Tracker -> its library."""


class Training:
    """One training of a run, in four steps: prepare the data, build the model, train it, judge it.

    The lock of the run must be held.
    """

    def __init__(self, run: Run, signals: StopSignals, display: Progress) -> None:
        self.run, self.signals, self.display = run, signals, display
        self.world = World()

    def run_from(
        self,
        config: RunConfig,
        checkpoint: Checkpoint | None = None,
        *,
        origin: Checkpoint | None = None,
        teacher: TeacherSource | None = None,
        stop_at: int | None = None,
        ended: bool = False,
        overridden: Mapping[str, Any] | None = None,
    ) -> Outcome:
        """Train from `checkpoint` on, or from the weights of `origin`, or from new weights.

        Args:
            config: The config of the run.
            checkpoint: The checkpoint to resume from.
            origin: The checkpoint of another run, which gives a new one its weights.
            teacher: The model to learn from, where the config names one.
            stop_at: Stop after this step.
            ended: The checkpoint is that of the last step: do not train, only judge.
            overridden: Settings that differ from those of the checkpoint, for versions.json.
        """
        prepared = self.prepare(config, checkpoint)
        loop = self.build(prepared, checkpoint, overridden or {}, origin, teacher)
        evaluation, report = None, None
        try:
            with self.signals.deferred(), self.display, loop.saver:
                if origin is not None and config.trainer.steps != 0:
                    self.show_beginning(loop)
                complete = ended or loop.train(stop_at)
                if complete:
                    evaluation, report = self.judge(loop)
                self.world.run_together(loop.saver.wait)
        except OSError as error:
            raise cannot_write(self.run.path / "metrics.jsonl", error, "The checkpoints are intact") from error
        finally:
            loop.metrics.close()
        exit_code = self.world.max_over_ranks(self.signals.exit_code) or self.world.max_over_ranks(exit_code_of(report))
        step = loop.counters.step
        trained_on = prepared.corpus.val_is_trained_on
        return Outcome(self.run, step, complete, evaluation, trained_on, exit_code, report)

    def prepare(self, config: RunConfig, checkpoint: Checkpoint | None) -> Prepared:
        """Read the text, and complete the config with what follows from it.

        Raises:
            UserError: A tracker or the device is missing, the text cannot be used, or it is not the text that the run
                began with.
        """
        trainer, world = config.trainer, self.world
        if world.is_first:
            clean(self.run.checkpoints)
        libraries = world.on_rank_zero(lambda: load(trainer.all_trackers)) or {}
        for rows, part in Lengths(trainer, config.sequence_length).batches():
            require_division(rows, part, world.size)
        device = choose_device(trainer.device, world.local_rank if world.size > 1 else None)
        precision = choose_precision(trainer.precision, device)
        if trainer.threads:
            torch.set_num_threads(trainer.threads)
        corpus = world.rank_zero_first(
            lambda: prepare(
                config.data, config.tokenizer, seed=trainer.seed, log=self.display.log, length=config.sequence_length,
                progress=self.display.work,
                given=None if config.origin is None else given_tokenizer(self.run.path),
            )
        )  # fmt: skip
        identity = identity_of(config.model, corpus, device, precision, world)
        world.run_together(lambda: refuse_other_data(identity, json.loads(world.broadcast_text(json.dumps(identity)))))
        if checkpoint is not None:  # before the vocabulary is compared, which another text may change
            compare_identity(self.run, checkpoint, identity, self.display)
        config = with_end(with_vocabulary(config, corpus), corpus)
        return Prepared(config, corpus, device, identity, libraries)

    def build(
        self,
        prepared: Prepared,
        checkpoint: Checkpoint | None,
        overridden: Mapping[str, Any],
        origin: Checkpoint | None = None,
        teacher: TeacherSource | None = None,
    ) -> Trainer:
        """Build the model and its optimizers, write the files of the run, and open its metrics.

        Raises:
            UserError: The disk has no room or cannot be written, or the model does not fit the checkpoint or the ranks.
        """
        config, corpus, device = prepared.config, prepared.corpus, prepared.device
        world, run, display, precision = self.world, self.run, self.display, prepared.identity["precision"]
        distiller = make_distiller(
            config, teacher, corpus, device=device, precision=precision, display=display, world=world
        )
        if checkpoint is not None:
            distiller.load_state_tensors(checkpoint.optimizer_state)
        adapters = None if checkpoint is not None else self.first_adapters(config, origin)
        model, optimizers, counters, taken = assemble(config, device, checkpoint, world, origin, adapters, run.path)
        matmul = settle_matmul(
            model, config.trainer, config.sequence_length, cache_folder(config.data.cache_dir),
            precision=precision, checkpoint=checkpoint, world=world, display=display,
        )  # fmt: skip
        identity = {**prepared.identity, "matmul": matmul}
        parameters = optimizers.placed.count()

        whole = sum(weight.numel() for weight in model.parameters())
        of_frozen = "" if config.lora is None else f"trained of {whole / 1e6:.2f}M "

        def prepare_folder() -> None:
            require_space(run, parameters)
            note = {"overridden": {"step": counters.step, **overridden}} if overridden else {}
            write_beside(config, run, corpus, versions(device, precision, matmul) | note)
            (run.path / REPORT).unlink(missing_ok=True)  # of an earlier end, or of other gates

        world.on_rank_zero(prepare_folder)
        display.log(
            f"{run.path}: {parameters / 1e6:.2f}M {of_frozen}parameters, vocabulary {config.model.vocab_size}, "
            f"{corpus.train_tokens} training and {corpus.val_tokens} held-out tokens, {device.type} {precision}"
            + kernels_message(identity)
            + (f", {world.size} ranks, {config.trainer.parallel}" if world.size > 1 else "")
            + (f", from step {counters.step}" if counters.step else "")
        )
        if origin is not None and taken is not None:
            display.log(f"the weights are those of {origin.path}")
            for what, names in (("new", taken.new), ("not used", taken.left_out)):
                if names:
                    display.log(f"{what}: {', '.join(names)}")
        metrics = world.on_rank_zero(
            lambda: open_metrics(run.path, config, counters.step, prepared.libraries, display.log)
        )
        self.signals.message = f"finishing the step, then saving {run.path}" if world.is_first else ""
        return Trainer(
            config, run, model, corpus, optimizers, precision=precision, metrics=metrics or NullMetrics(),
            display=display, counters=counters, identity=identity, saved=[checkpoint.step] if checkpoint else [],
            state=checkpoint.state if checkpoint else None,
            stop=lambda: world.max_over_ranks(self.signals.received or 0) > 0, distiller=distiller,
        )  # fmt: skip

    def find_teacher(self, config: RunConfig) -> TeacherSource | None:
        """Find the teacher that the config names; None without one."""
        section = config.distillation
        return None if section is None else read_teacher(section.teacher, self.display.work)

    def first_adapters(self, config: RunConfig, origin: Checkpoint | None) -> Mapping[str, Tensor] | None:
        """Read the adapters in the format of peft that a run begins with; None where it begins with new ones."""
        if config.lora is None or config.lora.initial is None or origin is None:
            return None
        from .importing.peft import read_peft

        return read_peft(config.lora.initial, config.model, origin.run).tensors

    def show_beginning(self, loop: Trainer) -> None:
        """Log the held-out loss before the first step, which the training should lower."""
        evaluation = loop.evaluate(loop.config.trainer.eval_tokens)
        if evaluation is not None:
            self.display.log(f"before training: held-out loss {evaluation.loss:.4f}")

    def judge(self, loop: Trainer) -> tuple[Evaluation | None, Report | None]:
        """Evaluate the trained model, and examine it by the gates of its config.

        Returns:
            The evaluation and the report on the gates; None for one that does not apply or that a signal prevented.

        Raises:
            UserError: The run diverged.
        """
        gates, trainer = loop.config.gates, loop.config.trainer
        if trainer.steps == 0 and not gates.asked:
            return None, None
        evaluation = loop.finish()
        if evaluation is not None:
            loop.require_convergence(evaluation)
        if not gates.asked:
            return evaluation, None
        if evaluation is None:
            self.display.log(f"the gates were not examined; examine them: {self.run.resume_command}")
            return None, None
        return evaluation, self.world.run_together(lambda: examine(loop, evaluation))
