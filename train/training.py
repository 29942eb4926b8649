"""From a config to a trained run: everything around the loop, in the order in which it happens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..contract.errors import UserError
from ..contract.file_names import CHAT_TEMPLATE, HELDOUT, TOKENIZER
from ..contract.files import cannot_write
from .config.run_config import RunConfig, make_config
from .data import Corpus, prepare
from .loop.assembly import assemble
from .loop.evaluate import Evaluation
from .loop.lengths import Lengths
from .loop.matmul_backend import settle_matmul, words
from .loop.trainer import Trainer
from .optim.batch_size import steps_for
from .parallel.world import World, require_division
from .results.examine import examine
from .results.lineage import require_parent
from .results.verdict import REPORT, Report, read_report
from .run.checkpoint import Checkpoint, clean, set_aside
from .run.checkpoint_names import list_checkpoints
from .run.differences import require_same
from .run.folder import Run
from .run.identity import compare_identity, identity_of, refuse_other_data
from .run.lock_over_ranks import held, newest
from .run.metrics import open_metrics
from .run.other_ranks import NullMetrics
from .run.trackers import load
from .system.device import choose_device, choose_precision, versions
from .system.progress import Progress
from .system.signals import Stopped, StopSignals

HELDOUT_BYTES = 256 * 1024


@dataclass(frozen=True)
class Outcome:
    """How a session of training ended."""

    run: Run
    step: int
    complete: bool
    """Whether the run reached its end; else it can be resumed."""
    evaluation: Evaluation | None = None
    """Of the whole held-out text, at the end of a run."""
    trained_on: bool = False
    """Whether that text was trained on, so that its loss says how well it is known by heart and no more."""
    exit_code: int = 0
    """128 + the number of the signal that ended it, if one did; 1 where a gate failed."""
    report: Report | None = None
    """What became of its gates; None where none are asked, or the run has not come to its end."""


def begin(
    config: RunConfig,
    run: Run,
    *,
    overwrite: bool = False,
    stop_at: int | None = None,
    display: Progress | None = None,
) -> Outcome:
    """Trains a new run.

    Raises:
        UserError: the run exists already and `overwrite` is not given, or the data, disk or device do not serve.
    """
    world = World()
    with StopSignals() as signals:
        display = display or Progress()
        try:
            with held(run, world):
                world.on_rank_zero(lambda: _make_way(config, run, overwrite))
                return _train(config, run, None, stop_at, signals, display)
        except Stopped as stopped:
            display.log(f"{stopped}: nothing was trained yet; the same command starts again")
            return Outcome(run, 0, False, exit_code=stopped.exit_code)


def _make_way(config: RunConfig, run: Run, overwrite: bool) -> None:
    if run.begun and not overwrite:
        raise UserError(
            f"{run.path} exists already; go on with it: {run.resume_command}; or give the new one another "
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
    """Goes on with a run that has a checkpoint, and begins one that has none: for jobs that are started again."""
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
    """Goes on with a run from its newest good checkpoint, exactly as if it had not stopped; `override` lets settings
    be changed that make it another run from there on, as the rates.

    Raises:
        UserError: there is nothing to resume, every checkpoint is damaged, or config, data or tokenizer differ from
            what the run began with.
    """
    if not run.path.is_dir():
        raise UserError(f"there is no run {run.path} to resume; begin it: the same command without --resume")
    world = World()
    with StopSignals() as signals:
        display = display or Progress()
        try:
            with held(run, world):
                found = newest(run, world, display)
                if found is None:
                    raise UserError(
                        f"{run.path} holds no checkpoint, so there is nothing to resume; begin again: the same command "
                        "without --resume"
                    )
                config = make_config(found.config.model_dump(mode="json"), overrides)
                overridden = require_same(run, found.config, config, override)
                for key, (before, after) in overridden.items():
                    display.log(f"note: {key} was {before!r} and is {after!r} from step {found.step} on")
                ended = bool(found.state.get("complete")) and not _longer(found.config, config)
                if ended and (not config.gates.asked or _judged(run, config)):
                    display.log(
                        f"{run.path} is complete at step {found.step}; to go on, give more --steps or --max-seconds"
                    )
                    report = read_report(run.path) if config.gates.asked else None
                    return Outcome(run, found.step, True, exit_code=code_of(report), report=report)
                world.on_rank_zero(lambda: require_parent(run, config))
                set_aside(found.damaged)  # those that the first rank passed over; the others know of none
                return _train(config, run, found, stop_at, signals, display, ended, overridden)
        except Stopped as stopped:
            display.log(f"{stopped}: nothing new was trained; go on with: {run.resume_command}")
            return Outcome(run, 0, False, exit_code=stopped.exit_code)


def _longer(stored: RunConfig, wanted: RunConfig) -> bool:
    ends = [(config.trainer.steps, config.trainer.max_seconds) for config in (stored, wanted)]
    return ends[0] != ends[1]


def code_of(report: Report | None) -> int:
    """1 where a gate failed."""
    return int(report is not None and not report.passed)


def _judged(run: Run, config: RunConfig) -> bool:
    """Whether the run was held against just these gates."""
    report = read_report(run.path)
    asked = config.gates.model_dump(mode="json")
    return report is not None and (report.asked, report.parent) == (asked, config.parent)


def _train(
    config: RunConfig,
    run: Run,
    found: Checkpoint | None,
    stop_at: int | None,
    signals: StopSignals,
    display: Progress,
    ended: bool = False,
    overridden: Mapping[str, Any] | None = None,
) -> Outcome:
    """`ended`: there is nothing to train any more, only gates to be held against. `overridden`: for versions.json."""
    world = World()
    if world.is_first:
        clean(run.checkpoints)
    trainer = config.trainer
    libraries = world.on_rank_zero(lambda: load(trainer.all_trackers)) or {}
    for rows, part in Lengths(config).batches():
        require_division(rows, part, world.size)
    device = choose_device(trainer.device, world.local_rank if world.size > 1 else None)
    precision = choose_precision(trainer.precision, device)
    if trainer.threads:
        torch.set_num_threads(trainer.threads)
    length = config.sequence_length
    corpus = world.rank_zero_first(
        lambda: prepare(
            config.data, config.tokenizer, seed=trainer.seed, say=display.log, length=length, progress=display.work
        )
    )
    identity = identity_of(config.model, corpus, device, precision, world)
    world.run_together(lambda: refuse_other_data(identity, json.loads(world.broadcast_text(json.dumps(identity)))))
    config = with_end(with_vocabulary(config, corpus), corpus)
    if found is not None:
        compare_identity(run, found, identity, display)

    model, optimizers, counters = assemble(config, device, found, world)
    identity["matmul"] = settle_matmul(model, config, precision, found, world, display)
    parameters = optimizers.placed.count()

    def prepare_folder() -> None:
        require_space(run, parameters)
        noted = {"overridden": {"step": counters.step, **overridden}} if overridden else {}
        write_beside(config, run, corpus, versions(device, precision, identity["matmul"]) | noted)
        (run.path / REPORT).unlink(missing_ok=True)  # of an earlier end, or of other gates

    world.on_rank_zero(prepare_folder)
    display.log(
        f"{run.path}: {parameters / 1e6:.2f}M parameters, vocabulary {config.model.vocab_size}, "
        f"{corpus.train_tokens} training and {corpus.val_tokens} held-out tokens, {device.type} {precision}"
        + words(identity)
        + (f", {world.size} ranks, {trainer.parallel}" if world.size > 1 else "")
        + (f", from step {counters.step}" if counters.step else "")
    )
    opened = world.on_rank_zero(lambda: open_metrics(run.path, config, counters.step, libraries, display.log))
    metrics = opened or NullMetrics()
    loop = Trainer(
        config, run, model, corpus, optimizers, precision=precision, metrics=metrics, display=display,
        counters=counters, identity=identity, saved=[] if found is None else [found.step],
        stop=lambda: world.max_over_ranks(signals.received or 0) > 0, state=found.state if found else None,
    )  # fmt: skip
    signals.last_words = f"finishing the step, then saving {run.path}" if world.is_first else ""
    asked, report = config.gates.asked, None
    try:
        with signals.deferred(), display, loop.saver:
            complete = ended or loop.train(stop_at)
            evaluation = loop.finish() if complete and (trainer.steps != 0 or asked) else None
            if evaluation is not None and asked:
                report = world.run_together(lambda: examine(loop, evaluation))
            world.run_together(loop.saver.wait)
    except OSError as error:
        raise cannot_write(run.path / "metrics.jsonl", error, "The checkpoints are intact") from error
    finally:
        metrics.close()
    if complete and asked and report is None:
        display.log(f"the gates were not looked at; do that: {run.resume_command}")
    exit_code = world.max_over_ranks(signals.exit_code) or world.max_over_ranks(code_of(report))
    return Outcome(run, counters.step, complete, evaluation, corpus.val_is_trained_on, exit_code, report)


def with_vocabulary(config: RunConfig, corpus: Corpus) -> RunConfig:
    """The config with the model's vocabulary filled from the tokenizer.

    Raises:
        UserError: the model was given fewer words than the tokenizer has.
    """
    asked = config.model.vocab_size
    if asked and asked < corpus.vocab_size:
        raise UserError(
            f"model.vocab_size is {asked}, but the tokenizer has {corpus.vocab_size} tokens; leave it out to take the "
            f"tokenizer's, or --set model.vocab_size={corpus.vocab_size} or more"
        )
    model = config.model.model_copy(update={"vocab_size": asked or corpus.vocab_size})
    return config.model_copy(update={"model": model})


def with_end(config: RunConfig, corpus: Corpus) -> RunConfig:
    """The config with the steps in which every source has its epochs, where neither steps nor seconds were given."""
    trainer = config.trainer
    if trainer.steps is not None or trainer.max_seconds is not None:
        return config
    windows = corpus.total_windows(config.sequence_length)
    steps = None if windows is None else steps_for(windows, trainer.batch_size, trainer.batch_schedule)
    return config.model_copy(update={"trainer": trainer.model_copy(update={"steps": steps})})


def require_space(run: Run, parameters: int) -> None:
    """Refuses to begin where not even one checkpoint fits.

    Raises:
        UserError: the disk has less room than weights and two optimizer slots take.
    """
    needed = 3 * 4 * parameters
    free = shutil.disk_usage(run.path).free
    if free < needed:
        raise UserError(
            f"{run.path}: one checkpoint takes up to {needed / 2**20:.0f} MiB, the disk has {free / 2**20:.0f} MiB; "
            "make room, or work in a folder on another disk"
        )


def write_beside(config: RunConfig, run: Run, corpus: Corpus, made_by: Mapping[str, Any]) -> None:
    """Writes what export needs beside the checkpoints."""
    run.write_config(config)
    run.write(TOKENIZER, corpus.tokenizer_json())
    run.write(HELDOUT, corpus.heldout_text(HELDOUT_BYTES))
    if corpus.chat_template:
        run.write(CHAT_TEMPLATE, corpus.chat_template)
    run.add_versions(made_by)
