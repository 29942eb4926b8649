"""The command `adaptive export`. Only click and the standard library are imported at the top: help is quick."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...runtime.commands.options.common import PATH

if TYPE_CHECKING:
    from ...runtime.format.manifest import Precisions
    from ..outgoing.formats import Format

EPILOG = """\b
The folder contains manifest.json, tokenizer.json, and two graphs with their weights: model.onnx of standard
operators, which runs everywhere, and model.cpu.onnx of our own operators, which runs where they were built; with
--target cuda also model.cuda.onnx, of the operators that suit a GPU. It is written only if the graphs make the same
decisions as the torch model and compute the same logits.

\b
Example: adaptive export demo --onnx
"""
WHOLE = ("int8", "int4", "bf16", "fp16", "none")
OF_A_PART = ("fp32", "bf16", "fp16", "int8", "int4")
PARTS = ("experts", "attention", "embedding", "head")
EVERYTHING = ""
"""Stands for the whole model in place of a part."""


def choice(text: str) -> tuple[str, str]:
    """Split what the user typed, a precision or PART=PRECISION, into the part or EVERYTHING, and the precision."""
    part, equals, precision = text.rpartition("=")
    if not equals and precision in WHOLE:
        return EVERYTHING, "fp32" if precision == "none" else precision
    if part in PARTS and precision in OF_A_PART:
        return part, precision
    raise click.BadParameter(
        f"found {text!r}, expected int8, int4, bf16 or fp16, or a part and its precision, such as experts=int4; parts "
        f"are {', '.join(PARTS)}, their precisions {', '.join(OF_A_PART)}"
    )


def precisions_of(choices: Sequence[tuple[str, str]]) -> "Precisions":
    """Return the precision of each part: that of the whole model, then those of single parts.

    Raises:
        UsageError: The whole model or a part has two precisions.
    """
    from ...runtime.format.manifest import Precisions

    chosen: dict[str, str] = {}
    for part, precision in choices:
        if chosen.setdefault(part, precision) != precision:
            what = f"{part}=" if part else ""
            raise click.UsageError(f"found --quantize {what}{chosen[part]} and {what}{precision}; give one of them")
    whole = Precisions.of(chosen.pop(EVERYTHING, "fp32"))  # type: ignore[arg-type]  # `choice` checked it
    return Precisions.model_validate(whole.model_dump() | chosen)


@click.command(epilog=EPILOG)
@click.argument("source", required=False, metavar="[RUN|CHECKPOINT]")
@click.option(
    "--checkpoint",
    default="last",
    show_default=True,
    metavar="best|last|STEP",
    help="Checkpoint of the run: best (lowest held-out loss), last (newest undamaged), or a step.",
)
@click.option("--out", type=PATH, metavar="FOLDER", help="Folder to write; by default the folder model in the run.")
@click.option("--onnx", "as_onnx", is_flag=True, help="Write ONNX, which is the default.")
@click.option(
    "--to",
    type=click.Choice(["hf", "gguf", "peft"]),
    help="Write the format of another program instead, to the place of --out: hf is a folder with safetensors and "
    "config.json for transformers, gguf a file for llama.cpp, peft a folder with the adapters of a run alone.",
)
@click.option(
    "--target",
    "targets",
    type=click.Choice(["portable", "cpu", "cuda"]),
    multiple=True,
    default=("portable", "cpu"),
    show_default=True,
    help="Graph to write; repeat it for several. The portable one is always written.",
)
@click.option(
    "--quantize",
    type=choice,
    multiple=True,
    metavar="int8|int4|bf16|fp16|PART=PRECISION",
    help="int8, int4, bf16 or, for --target cuda, fp16 for the whole model (int4 leaves embedding and head in int8), "
    "or PART=PRECISION with one of the parts experts, attention, embedding, head; repeat it for several. Routers and "
    "norms stay fp32.",
)
@click.option(
    "--kv",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="Precision of keys and values in the cache of the target cpu.",
)
@click.option(
    "--calibrate-text",
    type=PATH,
    metavar="FILE",
    help="Choose the scales of blocks in int8 and int4 by the activations on this text, not the held-out one.",
)
@click.option(
    "--embeddings",
    is_flag=True,
    help="Let the graphs also give the hidden states, for adaptive embed and POST /v1/embeddings.",
)
@click.option("--task", metavar="NAME", help="Task whose gates the model gets, if it was trained with gates per task.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads for the check; by default one per core.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report of the check as JSON.")
def export(
    source: str | None, checkpoint: str, out: Path | None, as_onnx: bool, to: "Format | None", targets: tuple[str, ...],
    quantize: tuple[tuple[str, str], ...], kv: str, calibrate_text: Path | None, embeddings: bool, task: str | None,
    threads: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Export a run or a checkpoint as an ONNX model, and check that its graphs equal the torch model.

    Without an argument the newest run under ./runs is exported, from its newest undamaged checkpoint.
    """
    if to is not None:
        for_onnx = {
            "--onnx": as_onnx, "--quantize": quantize, "--calibrate-text": calibrate_text, "--embeddings": embeddings,
            "--task": task,
        }  # fmt: skip
        write_as(to, source, checkpoint, out, [option for option, given in for_onnx.items() if given], as_json)
        return
    precisions = precisions_of(quantize)
    if calibrate_text and not precisions.quantised:
        raise click.UsageError("--calibrate-text chooses scales of int8 and int4; add --quantize int8 or int4")
    from ..exporter import run_export

    result = run_export(
        source,
        out,
        precisions,
        targets=[name for name in targets if name != "portable"],
        kv=kv,  # type: ignore[arg-type]  # click checked it
        calibrate_text=calibrate_text,
        threads=threads,
        checkpoint=checkpoint,
        embeddings=embeddings,
        task=task,
        log=lambda line: click.echo(line, err=True),
    )
    if as_json:
        click.echo(json.dumps({"model": str(result.folder), "parity": result.report}))
    else:
        click.echo(str(result.folder))


def write_as(
    to: "Format", source: str | None, checkpoint: str, out: Path | None, for_onnx: Sequence[str], as_json: bool
) -> None:
    """Write a run in the format of another program.

    Raises:
        UsageError: There is no --out, or an option is only for ONNX.
    """
    if for_onnx:
        raise click.UsageError(f"{for_onnx[0]} is for ONNX, and --to {to} writes another format; leave one of them out")
    if out is None:
        raise click.UsageError(f"--to {to} needs a place: add --out PATH")
    from ..outgoing.formats import export_to

    written = export_to(to, source, out, checkpoint=checkpoint, log=lambda line: click.echo(line, err=True))
    click.echo(json.dumps({"model": str(written)}) if as_json else str(written))
