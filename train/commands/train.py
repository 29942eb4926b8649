"""The command `adaptive train`. Only click and the standard library are imported before it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..config.run_config import RunConfig
    from ..results.verdict import Report
    from ..run.folder import Run
    from ..training import Outcome

EPILOG = """\b
Where a run ends: --steps or --max-seconds; naming one on the command line switches the recipe's other off.
The same over ranks, here by two processes, elsewhere as docs/multi-node.md shows:
  adaptive train quickstart --nproc 2
A run in two parts equals a run in one, bit for bit on a CPU:
  adaptive train --steps 200 --name b --stop-at 100
  adaptive train --resume --name b
The learning rate is planned for all the steps of a run, so a finished run that is resumed with more --steps
continues on the schedule of the new number; with schedule.kind=constant, that too changes nothing.

A small text that is read many times: --set data.augment.word_dropout=0.2 varies it (data.augment has other ways).

\b
Example: adaptive train quickstart --name demo
"""


@click.command(epilog=EPILOG)
@click.argument("recipe", required=False)
@click.option(
    "--data",
    "sources",
    multiple=True,
    metavar="SRC",
    help="Text to train on: file, folder, glob, hf:NAME or builtin:NAME; PATH@WEIGHT weighs it. Repeat to mix.",
)
@click.option("--val", metavar="SRC", help="Text to hold out; by default the last part of each source.")
@click.option("--data-dir", metavar="DIR", help="The folder of a recipe's own files, as of recipe science-qa.")
@click.option(
    "--stage",
    type=click.Choice(["baseline", "1", "2", "3", "4", "all"]),
    help="Train a stage of the recipe as run NAME-baseline or NAME-stageN, or all one after the other.",
)
@click.option("--text-field", metavar="FIELD", help="The field of a record that holds the text.")
@click.option("--tokenizer", metavar="KIND", help="bpe, words, chars, bytes, or the path of a tokenizer.json.")
@click.option("--vocab-size", type=click.IntRange(min=1), help="Size of a bpe or words vocabulary.")
@click.option(
    "--name", metavar="NAME", help="The run's folder is runs/NAME; by default the recipe or text and a number."
)
@click.option("--steps", type=click.IntRange(min=0), help="Steps of the whole run; 0 writes the initial weights.")
@click.option(
    "--max-seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds from the first step to the last save; the last evaluation comes after.",
)
@click.option(
    "--stop-at",
    type=click.IntRange(min=1),
    metavar="STEP",
    help="Stop after this step of the run and save; --resume goes on.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Decides the initial weights and the order of the text.")
@click.option("--device", metavar="DEVICE", help="auto, cpu or cuda.")
@click.option(
    "--compile/--no-compile",
    "compile_blocks",
    default=None,
    help="Compile the model's blocks (half a minute at first).",
)
@click.option(
    "--checkpoint-activations",
    is_flag=True,
    default=None,
    help="Compute activations again in the backward pass, to save memory.",
)
@click.option(
    "--resume", is_flag=True, help="Go on with run NAME (by default the newest) from its newest good checkpoint."
)
@click.option(
    "--override-resume", is_flag=True, help="Let --resume change rates, schedule, losses or batch size; it is noted."
)
@click.option("--overwrite", is_flag=True, help="Delete run NAME if it exists, and begin again.")
@click.option(
    "--begin-or-resume",
    is_flag=True,
    help="Begin run NAME, or go on with it if it has a checkpoint: for a job that is queued again.",
)
@click.option(
    "--nproc",
    type=click.IntRange(min=1),
    metavar="N",
    help="Train by N processes of this machine, each with its share of every batch; see trainer.parallel.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set any field, as in --set trainer.checkpoint_every=100. Repeat.",
)
@click.option("--print-config", is_flag=True, help="Print the config as YAML, and do nothing.")
def train(
    recipe: str | None,
    stage: str | None,
    name: str | None,
    stop_at: int | None,
    resume: bool,
    override_resume: bool,
    overwrite: bool,
    begin_or_resume: bool,
    nproc: int | None,
    settings: tuple[str, ...],
    print_config: bool,
    **flags: Any,
) -> None:
    """Train a model, and print the folder of the run.

    RECIPE is one that comes with the program, or the path of a YAML file as --print-config prints it. Without one,
    --data trains on that text with values that suit a small text and two minutes, and nothing at all is the recipe
    quickstart.
    """
    # Threads that spin while they wait make a trainer on busy cores ten times slower (measured: 9.8 against 0.8 s a
    # step). The OpenMP under torch reads this when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    if resume + overwrite + begin_or_resume > 1:
        raise click.UsageError(
            "--resume goes on with a run, --overwrite deletes it, --begin-or-resume does either; give one of them"
        )
    if begin_or_resume and (name is None or stage is not None):
        raise click.UsageError("--begin-or-resume wants the run's --name, and no --stage")
    if nproc is not None and nproc > 1 and not print_config:
        from ..parallel.launch import launch

        click.get_current_context().exit(launch(nproc, sys.argv[1:]))

    # Torch is imported only where something is trained: --print-config answers at once.
    from ..config import make_config, parse_setting, read_recipe
    from ..run.folder import named_run, newest_run, next_run

    if override_resume and not resume:
        raise click.UsageError("--override-resume changes a run that goes on; give --resume with it")
    overrides = [flag_values(**flags), *(parse_setting(setting) for setting in settings)]
    if stage is not None:
        if recipe is None or resume:
            raise click.UsageError("--stage begins stages of a RECIPE; go on with one by --resume --name NAME-stageN")
        if stage == "all" and (stop_at or print_config):
            raise click.UsageError("--stop-at and --print-config want one stage: give --stage baseline, 1, 2, 3 or 4")
        from ..recipe_stages import staged

        made = staged(recipe, stage, name or recipe, overrides)
        if print_config:
            click.echo(made[0][0].to_yaml(), nl=False)
        else:
            train_stages(made, overwrite, stop_at)
        return
    if resume:
        run = named_run(name) if name else newest_run()
        if recipe:
            overrides.insert(0, {"recipe": read_recipe(recipe)["recipe"]})
        if not print_config:
            from .. import training

            report(training.resume(run, overrides, stop_at=stop_at, override=override_resume))
            return
        from ..run.checkpoint import load_checkpoint

        config = make_config(load_checkpoint(run.path).config.model_dump(mode="json"), overrides)
    else:
        sources = flags["sources"]
        if recipe is None and not sources:
            recipe = "quickstart"
        config = make_config(read_recipe(recipe) if recipe else {}, overrides)
        if not print_config:
            from .. import training
            from ..parallel.world import World, restarted

            stem = config.recipe or Path(sources[0].rpartition("@")[0] or sources[0]).stem.rpartition(":")[2]
            run = named_run(World().broadcast_text(name or next_run(stem, again=restarted()).name))
            if begin_or_resume or restarted():
                report(training.begin_or_resume(config, run, overrides, stop_at=stop_at))
            else:
                report(training.begin(config, run, overwrite=overwrite, stop_at=stop_at))
            return
    click.echo(config.to_yaml(), nl=False)


def flag_values(
    *,
    sources: tuple[str, ...],
    val: str | None,
    data_dir: str | None,
    text_field: str | None,
    tokenizer: str | None,
    vocab_size: int | None,
    steps: int | None,
    max_seconds: float | None,
    seed: int | None,
    device: str | None,
    compile_blocks: bool | None,
    checkpoint_activations: bool | None,
) -> dict[str, Any]:
    """The flags that were given, as sections of the config."""
    sections: dict[str, dict[str, Any]] = {
        "data": {"sources": list(sources) or None, "val": val, "dir": data_dir, "text_field": text_field},
        "tokenizer": {"kind": tokenizer, "vocab_size": vocab_size},
        "trainer": {
            "steps": steps,
            "max_seconds": max_seconds,
            "seed": seed,
            "device": device,
            "compile": compile_blocks,
            "checkpoint_activations": checkpoint_activations,
        },
    }
    given = {name: {k: v for k, v in values.items() if v is not None} for name, values in sections.items()}
    return {name: values for name, values in given.items() if values}


def train_stages(made: Sequence[tuple[RunConfig, Run]], overwrite: bool, stop_at: int | None) -> None:
    """Trains one stage after the other; one whose gates fail ends with 1, and the next is trained all the same."""
    from .. import training

    code = 0
    for config, run in made:
        outcome = training.begin(config, run, overwrite=overwrite, stop_at=stop_at)
        tell(outcome)
        code = code or outcome.exit_code
        if not outcome.complete or outcome.exit_code > 1:
            code = outcome.exit_code
            break
    if len(made) > 1:
        click.echo(f"next: adaptive compare {' '.join(run.name for _, run in made)}", err=True)
    if code:
        click.get_current_context().exit(code)


def report_gates(report: Report) -> None:
    """A line for each gate, and where one failed, what stands as the best since."""
    for verdict in report.verdicts:
        click.echo(str(verdict), err=True)
    if not report.passed:
        stands = f"{report.best} stays the best" if report.best else "there is no better run to go back to"
        click.echo(f"gates: {len(report.failed)} of {len(report.verdicts)} failed; {stands}", err=True)


def report(outcome: Outcome) -> None:
    """What `tell` says, and the exit code of a signal or a failed gate."""
    tell(outcome)
    if outcome.exit_code:
        click.get_current_context().exit(outcome.exit_code)


def tell(outcome: Outcome) -> None:
    """The end of the story on stderr, and the run's folder on stdout."""
    run, found = outcome.run, outcome.evaluation
    if found is not None:
        of = "loss on text it was trained on" if outcome.trained_on else "held-out loss"
        used = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in found.usage.items())
        click.echo(
            f"{of} {found.loss:.4f}, perplexity {found.perplexity:.2f}, "
            f"bits per byte {found.bits_per_byte:.4f}, "
            f"{used} (step {outcome.step}, {found.tokens} tokens)",
            err=True,
        )
    if outcome.report is not None:
        report_gates(outcome.report)
    if outcome.complete:
        from ..run.best import read_best

        best = read_best(run.path)
        if best is not None and best.step != outcome.step:
            click.echo(
                f"the checkpoint of step {best.step} has a lower loss, {best.val_loss:.4f} over {best.tokens} tokens; "
                f"adaptive export {run.name} --checkpoint best --onnx exports that one",
                err=True,
            )
        click.echo(f"next: adaptive export {run.name} --onnx", err=True)
    elif outcome.step:
        click.echo(f"saved at step {outcome.step}; go on with: {run.resume_command}", err=True)
    if outcome.complete or outcome.step:
        click.echo(str(run.path))
