"""The command `adaptive export`. Only click and the standard library are imported at the top: help is quick."""

import json
from pathlib import Path

import click

from ...runtime.commands.options import PATH

EPILOG = """\b
The folder contains manifest.json, model.onnx with its weights in model.onnx.data, and tokenizer.json: all that
generate and bench need. It is written only if the graph makes the same decisions as the torch model and
computes the same logits.

\b
Example: adaptive export demo --onnx
"""


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
@click.option("--onnx", "as_onnx", is_flag=True, help="Write ONNX: the default, and so far the only format.")
@click.option(
    "--quantize",
    type=click.Choice(["none", "int8"]),
    default="none",
    show_default=True,
    help="int8: weights and activations in 8 bits with a scale per row; routers and norms stay fp32.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads for the check; by default one per core.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report of the check as JSON.")
def export(
    source: str | None,
    checkpoint: str,
    out: Path | None,
    as_onnx: bool,
    quantize: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Export a run or a checkpoint as one portable ONNX model, and check that it equals the torch model.

    Without an argument the newest run under ./runs is exported, from its newest undamaged checkpoint.
    """
    del as_onnx  # ONNX is the only format; a second one would give the flag a meaning
    from ...runtime.format.manifest import Precisions
    from ..exporter import run_export

    result = run_export(
        source,
        out,
        Precisions.of("int8" if quantize == "int8" else "fp32"),
        threads=threads,
        checkpoint=checkpoint,
        log=lambda line: click.echo(line, err=True),
    )
    if as_json:
        click.echo(json.dumps({"model": str(result.folder), "parity": result.report}))
    else:
        click.echo(str(result.folder))
