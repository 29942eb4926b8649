"""The command `adaptive import`. Only click and the standard library are imported at the top: help is quick."""

import time
from pathlib import Path

import click

from ...contract.files import user_path

EPILOG = """\b
PATH is a folder in the format of Hugging Face (config.json, *.safetensors, tokenizer.json), also a model's folder in
the cache of the hub, or a .gguf file. docs/guides/import.md lists the families that can be read. Nothing in the
folder is executed: pickles and remote code are refused.

\b
The run has the weights in their own precision, and is used as one that was trained here:
  adaptive export qwen3 --onnx --quantize int8
  adaptive calibrate --model runs/qwen3/model
  adaptive generate "The capital of France is" --model runs/qwen3/model

\b
Example: adaptive import ./Qwen3-0.6B --name qwen3
"""


@click.command("import", epilog=EPILOG)
@click.argument("path")
@click.option("--name", required=True, metavar="NAME", help="Name of the run, in the folder runs/NAME.")
@click.option(
    "--context",
    type=click.IntRange(min=8),
    metavar="N",
    help="Longest sequence in tokens, at least 8; by default the model's own. Caches grow with it.",
)
@click.option(
    "--heldout",
    metavar="FILE",
    help="Text to check and calibrate the model with; by default a built-in text; a small model samples its own.",
)
@click.option("--overwrite", is_flag=True, help="Replace run NAME if it exists.")
def import_(path: str, name: str, context: int | None, heldout: str | None, overwrite: bool) -> None:
    """Import a model that another program wrote, as a run, and print the folder of the run.

    Export, calibrate, inspect, serve and further training then work as for a model that was trained here.
    """
    from ..importing.importer import import_model
    from ..system.progress import Progress, duration

    started, display = time.monotonic(), Progress()
    written = import_model(
        user_path(path),
        name,
        context=context,
        heldout=None if heldout is None else Path(user_path(heldout)),
        overwrite=overwrite,
        log=display.log,
        work=display.work,
    )
    config = written.config
    experts = f", {config.num_experts} experts" if config.ffn.routing != "dense" else ""
    display.log(
        f"imported {written.parameters / 1e6:.1f}M parameters, {written.bytes / 2**20:.1f} MiB, in "
        f"{duration(time.monotonic() - started)}: {config.num_layers} layers of width {config.dim}{experts}, "
        f"vocabulary {config.vocab_size}, context {config.context_length}"
    )
    display.log(f"next: adaptive export {name} --onnx --quantize int8")
    click.echo(str(written.run.path))
