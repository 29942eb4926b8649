"""The command `adaptive export`. Only click and the standard library are imported before it is called."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ...runtime.commands.options import PATH

EPILOG = """\b
The folder holds manifest.json, model.onnx with its weights in model.onnx.data, and tokenizer.json: all that
generate, bench and serve need. It is written only if the graph decides and computes what the torch model does.

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
    help="Which of the run's: that of the least held-out loss, the newest good one, or that of a step.",
)
@click.option("--out", type=PATH, metavar="FOLDER", help="Default: the folder model in the run.")
@click.option("--onnx", "as_onnx", is_flag=True, help="Write ONNX, the one format so far and the default.")
@click.option(
    "--quantize",
    type=click.Choice(["none", "int8"]),
    default="none",
    show_default=True,
    help="int8 weights and activations with a scale per row; routers and norms stay fp32.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads for the check; by default one per core.")
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
    """Turn a run or a checkpoint into one portable ONNX model, and prove it equal to torch.

    Without an argument the newest run under ./runs is exported, from its newest good checkpoint.
    """
    del as_onnx  # says what happens anyway; a second format would give it a meaning
    from ..exporter import run_export

    result = run_export(
        source,
        out,
        "int8" if quantize == "int8" else "fp32",
        threads=threads,
        checkpoint=checkpoint,
        story=lambda line: click.echo(line, err=True),
    )
    if as_json:
        click.echo(json.dumps({"model": str(result.folder), "parity": result.report}))
    else:
        click.echo(str(result.folder))
