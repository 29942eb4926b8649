"""The command `adaptive train`. Only click and the standard library are imported at the top."""

from __future__ import annotations

import os
import sys
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

    from .request import Request

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
