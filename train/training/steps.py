"""The steps of a training: everything around the loop, in the order in which it happens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...contract.files import cannot_write
from ..config.run_config import RunConfig
from ..data import Corpus, prepare
from ..distillation.setup import make_distiller
from ..distillation.teacher_source import TeacherSource, read_teacher
from ..loop.figures.evaluate import Evaluation
from ..loop.lengths import Lengths
from ..loop.setup.assembly import assemble
from ..loop.setup.completion import with_end, with_vocabulary
from ..loop.setup.matmul_backend import kernels_message, settle_matmul
from ..loop.setup.run_files import require_space, write_beside
from ..loop.trainer import Trainer
from ..parallel.world import World, require_division
from ..results.examine import examine
from ..results.verdict import REPORT, Report, exit_code_of
from ..run.checkpoints.checkpoint import Checkpoint, clean
from ..run.folder import Run
from ..run.identity import compare_identity, identity_of, refuse_other_data
from ..run.metrics import open_metrics
from ..run.origin import given_tokenizer
from ..run.ranks.other_ranks import NullMetrics
from ..run.trackers import load
from ..system.cache_folder import cache_folder
from ..system.device import choose_device, choose_precision, versions
from ..system.progress import Progress
from ..system.signals import StopSignals
from .outcome import Outcome


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
        from ..importing.peft import read_peft

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
