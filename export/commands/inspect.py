"""The command `adaptive inspect`. Only click and the standard library are imported at the top: help is quick."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...contract.file_names import MANIFEST
from ...runtime.commands.options.common import PATH, check_plot, dial_options, model_options, option_names

if TYPE_CHECKING:
    from ...runtime.inspection.inspect import InspectParams
    from ...runtime.inspection.inspection import Inspection


@click.command(epilog="\b\nExample: adaptive inspect --plot inspection.png --html inspection.html")
@click.argument("folder", required=False, metavar="[RUN|MODEL]")
@click.option("--checkpoint", metavar="WHICH", help="Checkpoint of a RUN: best, last (the default) or a step.")
@click.option("--data", type=PATH, metavar="FILE", help="Text to read; by default heldout.txt of the run.")
@click.option(
    "--tokens", type=int, default=16384, show_default=True, help="Most tokens of the text to read, at least 1."
)
@click.option(
    "--frequent",
    type=int,
    default=20,
    show_default=True,
    help="Number of frequent tokens that get a line each; at least 1.",
)
@click.option("--dead-below", type=float, default=0.001, show_default=True, metavar="SHARE",
              help="Call an expert or head dead if a smaller share of a layer's tokens uses it; 0 to 1.")  # fmt: skip
@click.option("--plot", "plot_path", type=PATH, metavar="FILE", help="Draw heat maps: .png, .svg or .pdf.")
@click.option(
    "--html", "html_path", type=PATH, metavar="FILE", help="Write one page with tables, heat maps and the text."
)
@click.option("--json", "as_json", is_flag=True, help="Print all figures as one JSON object.")
@dial_options
@model_options
def inspect(
    folder: str | None, checkpoint: str | None, model: str | None, data: Path | None, tokens: int, frequent: int,
    dead_below: float, plot_path: Path | None, html_path: Path | None, as_json: bool, device: str, target: str,
    threads: int | None, verify: bool, **dial: float | None,
) -> None:  # fmt: skip
    """Show which experts, heads and layers a model uses for which tokens.

    RUN is the name or folder of a run, or a checkpoint. MODEL is the folder of an exported model, by default the
    newest. A run also shows saturation: how early in training its routers chose as they do at the end.

    The command reads a text and counts, at the model's own thresholds or at any point of the dial. Tokens are grouped
    by class (letters, numbers, signs, line starts...), by position, and by frequent token. For each layer you see how
    many experts or heads a token uses, how evenly they are used, which are dead, which are chosen together, and how
    much of the choice a grouping explains: 0 none of it, 1 all of it. The number in brackets is what shuffled groups
    explain by chance.
    """
    if folder and model:
        raise click.UsageError("found two models, expected one: give MODEL or --model FOLDER")
    if checkpoint and not folder:
        raise click.UsageError("--checkpoint needs the name of a run: adaptive inspect RUN --checkpoint best")
    check_plot(plot_path)
    from ...runtime.dial import Dial
    from ...runtime.inspection.inspect import InspectParams

    with option_names():
        params = InspectParams(data=data, tokens=tokens, frequent=frequent, dead_below=dead_below,
                               dial=Dial(**dial))  # fmt: skip
    inspection = inspect_named(folder, checkpoint, model, params, device=device, target=target, threads=threads,
                               verify=verify)  # fmt: skip
    for line in inspection.warnings:
        click.echo(f"note: {line}", err=True)
    if plot_path:
        from ...runtime.inspection.plot import plot
        from ...runtime.terminal.drawing import draw

        draw(partial(plot, inspection), plot_path, requested=True)
    if html_path:
        from ...runtime.inspection.page import write_page

        write_page(inspection, html_path)
        click.echo(f"page: {html_path}", err=True)
    if as_json:
        click.echo(json.dumps(inspection.as_json(), allow_nan=False))
    else:
        from ...runtime.inspection.tables import show

        show(inspection)


def inspect_named(
    folder: str | None, which: str | None, model: str | None, params: InspectParams, **options: Any
) -> Inspection:
    """Inspect an exported model or a checkpoint, whichever the arguments name. Only a checkpoint loads torch."""
    from ...runtime.format.locate import find_model
    from ...runtime.inspection.inspect import inspect_model

    if folder is None or (which is None and (Path(folder) / MANIFEST).is_file()):
        return inspect_model(find_model(folder or model), params, **options)
    exported = up_to_date(path_of(folder)) if which is None else None
    if exported is not None:
        return inspect_model(exported, params, **options)
    from ..inspecting import inspect_checkpoint

    options.pop("verify")
    options.pop("target")  # the graph made here is portable
    return inspect_checkpoint(folder, which or "last", params, **options)


def path_of(name: str) -> Path:
    """Return the folder of the run of that name, or `name` as a path where there is no such run."""
    run = Path("runs") / name
    return run if Path(name).name == name and run.is_dir() else Path(name)


def up_to_date(run: Path) -> Path | None:
    """Return the exported model in the folder of a run, if it was made from the newest checkpoint there."""
    model = run / "model"
    steps = [int(path.name[5:]) for path in run.glob("checkpoints/step-*") if path.name[5:].isdigit()]
    try:
        step = json.loads((model / MANIFEST).read_bytes())["created_by"].get("step")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return model if step == max(steps, default=step) else None
