"""The command `adaptive train`. Only click and the standard library are imported at the top."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

EPILOG = """\b
A run ends after --steps or --max-seconds. If you give one of them, the recipe's value of the other is ignored.
Train with two processes on this machine (for several machines see docs/multi-node.md):
  adaptive train quickstart --nproc 2
Train in two parts; on a CPU the result is the same to the last bit:
  adaptive train --steps 200 --name b --stop-at 100
  adaptive train --resume --name b
The learning rate is scheduled over all steps of a run. If you resume a complete run with more --steps, the schedule
is stretched to the new number; with schedule.kind=constant, nothing changes.
Go on from the weights of a run with another text, or train adapters beside them (see docs/guides/fine-tuning.md):
  adaptive train --from demo --data notes.txt --name notes
  adaptive train lora --from demo --data notes.txt --name notes

Learn from a larger model as well as from the text (see docs/guides/distillation.md):
  adaptive train quickstart --teacher demo --set model.num_layers=2 --name small

Vary a small text that is read many times: --set data.augment.word_dropout=0.2 (see data.augment for more).

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
    help="Text to train on: file, folder, glob, hf:NAME or builtin:NAME; PATH@WEIGHT sets its share. Repeat to mix.",
)
@click.option("--val", metavar="SRC", help="Held-out text; by default the last part of each source.")
@click.option(
    "--data-dir",
    metavar="DIR",
    help="Folder of the files that a recipe such as science-qa names; by default the current one.",
)
@click.option(
    "--stage",
    type=click.Choice(["baseline", "1", "2", "3", "4", "all"]),
    help="Train one stage of the recipe, or all in order; the runs are NAME-baseline and NAME-stageN.",
)
@click.option(
    "--text-field",
    metavar="FIELD",
    help="Field of a record that contains the text; by default messages, prompt and completion, text or conversations.",
)
@click.option(
    "--tokenizer",
    metavar="KIND",
    help="bpe, words, chars, bytes, or the path of a tokenizer.json; by default as in the recipe.",
)
@click.option(
    "--vocab-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Largest vocabulary of bpe or words; by default 4096.",
)
@click.option(
    "--name",
    metavar="NAME",
    help="Name of the run, in the folder runs/NAME; by default the recipe, text or run of --from, and a number.",
)
@click.option(
    "--steps", type=click.IntRange(min=0), metavar="N", help="Steps of the whole run; 0 writes the initial weights."
)
@click.option(
    "--max-seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Seconds from the first step to the last save; the last evaluation comes after that.",
)
@click.option(
    "--stop-at",
    type=click.IntRange(min=1),
    metavar="STEP",
    help="Stop after this step and save; --resume continues from there.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    help="Seed of the initial weights and of the order of the text; by default 0.",
)
@click.option(
    "--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N; auto, the default, takes CUDA if it works."
)
@click.option(
    "--compile/--no-compile",
    "compile_blocks",
    default=None,
    help="Compile the model's blocks (takes half a minute the first time).",
)
@click.option(
    "--checkpoint-activations",
    is_flag=True,
    default=None,
    help="Recompute activations in the backward pass, to save memory.",
)
@click.option(
    "--from",
    "origin",
    metavar="RUN",
    help="Go on from the weights of a run, trained here or imported: with its model and its tokenizer.",
)
@click.option(
    "--checkpoint",
    metavar="WHICH",
    help="Which checkpoint of --from: best, last or a step; by default the last one.",
)
@click.option(
    "--lora",
    metavar="FOLDER",
    help="Begin with an adapter in the format of peft, for the model of --from; the recipe lora makes new ones.",
)
@click.option(
    "--teacher",
    metavar="MODEL",
    help="Learn from a larger model: a run, the folder of an exported or a Hugging Face model, or a .gguf file.",
)
@click.option(
    "--resume", is_flag=True, help="Continue run NAME (by default the newest) from its newest good checkpoint."
)
@click.option(
    "--override-resume",
    is_flag=True,
    help="Let --resume change rates, schedule, losses or batch size; the change is logged.",
)
@click.option("--overwrite", is_flag=True, help="Delete run NAME if it exists, and begin again.")
@click.option(
    "--begin-or-resume",
    is_flag=True,
    help="Begin run NAME, or resume it if it has a checkpoint: for jobs that are restarted.",
)
@click.option(
    "--nproc",
    type=click.IntRange(min=1),
    metavar="N",
    help="Train with N processes on this machine, each with its share of every batch; see trainer.parallel.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set any field of the config, as in --set trainer.checkpoint_every=100; repeat for several.",
)
@click.option("--print-config", is_flag=True, help="Print the config as YAML, and train nothing.")
def train(nproc: int | None, **options: Any) -> None:
    """Train a model, and print the folder of the run.

    RECIPE is the name of a built-in recipe, or the path of a YAML file in the format of --print-config. Without RECIPE,
    --data trains on your text with settings for a small text and two minutes; without both, quickstart is trained. With
    --from RUN and no RECIPE, the recipe is fine-tune.
    """
    # Threads that spin while they wait make a trainer on busy cores ten times slower (measured: 9.8 against 0.8 s a
    # step). The OpenMP under torch reads this when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    request = Request(**options)
    request.require_one_mode()
    if nproc is not None and nproc > 1 and not request.print_config:
        from ..parallel.launch import launch

        code = launch(nproc, sys.argv[1:])
    else:
        from .actions import resolve

        code = resolve(request).perform()
    if code:
        click.get_current_context().exit(code)


class Request:
    """The arguments and options of `adaptive train`, as they were typed."""

    def __init__(
        self,
        *,
        recipe: str | None,
        stage: str | None,
        origin: str | None,
        checkpoint: str | None,
        lora: str | None,
        name: str | None,
        stop_at: int | None,
        resume: bool,
        override_resume: bool,
        overwrite: bool,
        begin_or_resume: bool,
        settings: tuple[str, ...],
        print_config: bool,
        **flags: Any,
    ) -> None:
        self.recipe, self.stage, self.name, self.stop_at = recipe, stage, name, stop_at
        self.origin, self.checkpoint, self.lora = origin, checkpoint, lora
        self.resume, self.override_resume, self.overwrite = resume, override_resume, overwrite
        self.begin_or_resume, self.print_config = begin_or_resume, print_config
        self.settings, self.flags = settings, flags

    def require_one_mode(self) -> None:
        """Raise UsageError if the options ask for more than one thing at a time."""
        if self.resume + self.overwrite + self.begin_or_resume > 1:
            raise click.UsageError(
                "--resume continues a run, --overwrite replaces it, --begin-or-resume does either as needed; give one"
            )
        if self.begin_or_resume and (self.name is None or self.stage is not None):
            raise click.UsageError("--begin-or-resume needs the run's --name, and no --stage")
        if self.override_resume and not self.resume:
            raise click.UsageError("--override-resume changes settings when a run is resumed; give --resume with it")
        if self.stage is not None and (self.recipe is None or self.resume):
            raise click.UsageError("--stage begins stages of a RECIPE; resume a stage with --resume --name NAME-stageN")
        if self.checkpoint is not None and self.origin is None:
            raise click.UsageError("--checkpoint names a checkpoint of another run; give that run with --from RUN")
        if self.lora is not None and self.origin is None:
            raise click.UsageError("--lora adapts the model of another run; give that run with --from RUN")
        if self.origin is not None and (self.resume or self.stage is not None):
            raise click.UsageError(
                "--from begins a run with the weights of another one; leave out --stage and --resume, by which a run "
                "goes on from its own"
            )
        if self.stage == "all" and (self.stop_at or self.print_config):
            raise click.UsageError("--stop-at and --print-config need one stage: give --stage baseline, 1, 2, 3 or 4")

    def overrides(self) -> list[dict[str, Any]]:
        """Return the flags and the settings, in the order in which they override each other."""
        from ..config.run_config import parse_setting

        return [flag_values(**self.flags), *(parse_setting(setting) for setting in self.settings)]

    def stem(self, recipe: str | None) -> str:
        """Return the default name of a run without its number: that of its recipe, or else of its text."""
        source = self.flags["sources"][0] if recipe is None else recipe
        return recipe or Path(source.rpartition("@")[0] or source).stem.rpartition(":")[2]


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
    teacher: str | None,
    device: str | None,
    compile_blocks: bool | None,
    checkpoint_activations: bool | None,
) -> dict[str, Any]:
    """Return the flags that were given, as sections of the config."""
    sections: dict[str, dict[str, Any]] = {
        "distillation": {"teacher": None if teacher is None else {"model": teacher}},
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
