"""The command `adaptive inspect`. Only click and the standard library up here: help is quick."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import click

from .cli import check_plot, dial_options, model_options, utf8_stdout


@click.command(epilog="\b\nExample: adaptive inspect --plot inspection.png --html inspection.html")
@click.argument("folder", required=False, metavar="[MODEL]")
@click.option("--data", metavar="FILE", help="Text to read; by default heldout.txt of the run.")
@click.option("--tokens", type=int, default=16384, show_default=True, help="Read at most this many of it.")
@click.option("--frequent", type=int, default=20, show_default=True, help="Frequent tokens that get a line each.")
@click.option("--dead-below", type=float, default=0.001, show_default=True, metavar="SHARE",
              help="An expert or head that fewer of a layer's tokens use is dead.")  # fmt: skip
@click.option("--plot", "plot_path", metavar="FILE", help="Draw heat maps: .png, .svg or .pdf.")
@click.option("--html", "html_path", metavar="FILE", help="Write one page with tables, heat maps and the text.")
@click.option("--json", "as_json", is_flag=True, help="Print all figures as one JSON object.")
@dial_options
@model_options
def inspect(
    folder: str | None, model: str | None, data: str | None, tokens: int, frequent: int, dead_below: float,
    plot_path: str | None, html_path: str | None, as_json: bool, device: str, threads: int | None, verify: bool,
    **dial: float | None,
) -> None:  # fmt: skip
    """Show which experts, heads and layers a model uses for which tokens: MODEL is a folder, or a run.

    It reads a text and counts, at the model's own thresholds or at any point of the dial. Tokens are grouped by class
    (letters, numbers, signs, line starts...), by position and by which frequent token they are. Of each layer you see
    how many a token uses, how evenly, which are dead, which go together, and how much of the choice a group explains:
    0 nothing, 1 all of it, and in brackets what shuffled groups would seem to explain.
    """
    if folder and model:
        raise click.UsageError("found two models, expected one: give MODEL or --model FOLDER")
    check_plot(plot_path)
    from .dial import Dial
    from .inspect_model import InspectParams, inspect_model
    from .locate import find_model

    params = InspectParams(data=Path(data) if data else None, tokens=tokens, frequent=frequent, dead_below=dead_below,
                           dial=Dial(**dial))  # fmt: skip
    place = find_model(named(folder or model))
    found = inspect_model(place, params, device=device, threads=threads, verify=verify)
    for line in found.remarks:
        click.echo(f"note: {line}", err=True)
    if plot_path:
        from .drawing import draw
        from .inspection_plot import plot

        draw(partial(plot, found), Path(plot_path), asked=True)
    if html_path:
        from .inspection_page import write_page

        write_page(found, Path(html_path))
        click.echo(f"page: {html_path}", err=True)
    if as_json:
        click.echo(json.dumps(found.as_json(), allow_nan=False))
    else:
        from .inspection_render import show

        with utf8_stdout():
            show(found)


def named(wanted: str | None) -> str | None:
    """A run by its name alone, as the commands of training take it; anything else as it is."""
    if wanted and not Path(wanted).exists() and (Path("runs") / wanted).is_dir():
        return str(Path("runs") / wanted)
    return wanted
