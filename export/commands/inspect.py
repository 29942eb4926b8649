"""The command `adaptive inspect`. Only click and the standard library up here: help is quick."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...contract.file_names import MANIFEST
from ...runtime.commands.options import PATH, check_plot, dial_options, model_options

if TYPE_CHECKING:
    from ...runtime.inspection.inspect import Inspection, InspectParams


@click.command(epilog="\b\nExample: adaptive inspect --plot inspection.png --html inspection.html")
@click.argument("folder", required=False, metavar="[RUN|MODEL]")
@click.option("--checkpoint", metavar="WHICH", help="Of a RUN: best, last (the default) or the step of one it kept.")
@click.option("--data", type=PATH, metavar="FILE", help="Text to read; by default heldout.txt of the run.")
@click.option("--tokens", type=int, default=16384, show_default=True, help="Tokens of it to read, at most; at least 1.")
@click.option("--frequent", type=int, default=20, show_default=True, help="Frequent tokens to list; at least 1.")
@click.option("--dead-below", type=float, default=0.001, show_default=True, metavar="SHARE",
              help="A unit that a smaller share of a layer's tokens uses is dead; 0 to 1.")  # fmt: skip
@click.option("--plot", "plot_path", type=PATH, metavar="FILE", help="Draw heat maps: .png, .svg or .pdf.")
@click.option(
    "--html", "html_path", type=PATH, metavar="FILE", help="Write one page with tables, heat maps and the text."
)
@click.option("--json", "as_json", is_flag=True, help="Print all figures as one JSON object.")
@dial_options
@model_options
def inspect(
    folder: str | None, checkpoint: str | None, model: str | None, data: Path | None, tokens: int, frequent: int,
    dead_below: float, plot_path: Path | None, html_path: Path | None, as_json: bool, device: str, threads: int | None,
    verify: bool, **dial: float | None,
) -> None:  # fmt: skip
    """Show which experts, heads and layers a model uses for which tokens.

    RUN is the name or folder of a run, or a checkpoint; MODEL is the folder of an exported model, by default the
    newest. A run also shows saturation: how early in training its routers made the choices of its end.

    It reads a text and counts, at the model's own thresholds or at any point of the dial. Tokens are grouped by class
    (letters, numbers, signs, line starts...), by position and by which frequent token they are. Of each layer you see
    how many a token uses, how evenly, which are dead, which go together, and how much of the choice a group explains:
    0 nothing, 1 all of it, and in brackets what shuffled groups would seem to explain.
    """
    if folder and model:
        raise click.UsageError("found two models, expected one: give MODEL or --model FOLDER")
    if checkpoint and not folder:
        raise click.UsageError("--checkpoint wants the run that it is of: adaptive inspect RUN --checkpoint best")
    check_plot(plot_path)
    from ...runtime.dial import Dial
    from ...runtime.inspection.inspect import InspectParams

    params = InspectParams(data=data, tokens=tokens, frequent=frequent, dead_below=dead_below,
                           dial=Dial(**dial))  # fmt: skip
    found = looked_at(folder, checkpoint, model, params, device=device, threads=threads, verify=verify)
    for line in found.warnings:
        click.echo(f"note: {line}", err=True)
    if plot_path:
        from ...runtime.inspection.plot import plot
        from ...runtime.terminal.drawing import draw

        draw(partial(plot, found), plot_path, requested=True)
    if html_path:
        from ...runtime.inspection.page import write_page

        write_page(found, html_path)
        click.echo(f"page: {html_path}", err=True)
    if as_json:
        click.echo(json.dumps(found.as_json(), allow_nan=False))
    else:
        from ...runtime.inspection.tables import show

        show(found)


def looked_at(
    folder: str | None, which: str | None, model: str | None, params: InspectParams, **options: Any
) -> Inspection:
    """The inspection of what is named: an exported model, or a checkpoint. Only the latter loads torch."""
    from ...runtime.format.locate import find_model
    from ...runtime.inspection.inspect import inspect_model

    if folder is None or (which is None and (Path(folder) / MANIFEST).is_file()):
        return inspect_model(find_model(folder or model), params, **options)
    exported = up_to_date(named(folder)) if which is None else None
    if exported is not None:
        return inspect_model(exported, params, **options)
    from ..inspecting import inspect_checkpoint

    options.pop("verify")
    return inspect_checkpoint(folder, which or "last", params, **options)


def named(wanted: str) -> Path:
    """A run by its name alone, as the commands of training take it; anything else as it is."""
    run = Path("runs") / wanted
    return run if Path(wanted).name == wanted and run.is_dir() else Path(wanted)


def up_to_date(run: Path) -> Path | None:
    """The exported model in the folder of a run, if it is of its newest checkpoint, or there is no other."""
    model = run / "model"
    steps = [int(path.name[5:]) for path in run.glob("checkpoints/step-*") if path.name[5:].isdigit()]
    try:
        made_of = json.loads((model / MANIFEST).read_bytes())["created_by"].get("step")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return model if made_of == max(steps, default=made_of) else None
