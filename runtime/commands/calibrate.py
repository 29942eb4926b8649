"""The command `adaptive calibrate`. Only click and the standard library up here: help is quick."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import click

from ...contract.errors import EXIT_INTERRUPTED
from .options import check_plot, model_options


@click.command(epilog="\b\nExample: adaptive calibrate --tokens 8192")
@click.argument("folder", required=False, metavar="[MODEL]")
@click.option(
    "--data", metavar="FILE", help="Text that the model was not trained on; by default heldout.txt of the run."
)
@click.option("--tokens", type=int, default=16384, show_default=True,
              help="Tokens of it: half to choose on, half to report on.")  # fmt: skip
@click.option("--agreement", type=float, multiple=True, metavar="SHARE", default=(0.9, 0.95, 0.99), show_default=True,
              help="Share of tokens that shall choose as if none left early; may be given several times.")  # fmt: skip
@click.option("--prompt-tokens", type=int, default=32, show_default=True, help="Of the timing: length of the prompt.")
@click.option("--new-tokens", type=int, default=64, show_default=True, help="Of the timing: tokens to decode after it.")
@click.option("--repeats", type=int, default=11, show_default=True, help="Of the timing: rounds; 0 measures no times.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order in which points are timed.")
@click.option("--plot", "plot_path", metavar="FILE", help="Where to draw the curve: .png, .svg or .pdf.")
@click.option("--json", "as_json", is_flag=True, help="Print the curve as one JSON object.")
@model_options
@click.pass_context
def calibrate(
    ctx: click.Context, folder: str | None, model: str | None, data: str | None, tokens: int,
    agreement: tuple[float, ...], prompt_tokens: int, new_tokens: int, repeats: int, seed: int, plot_path: str | None,
    as_json: bool, device: str, threads: int | None, verify: bool,
) -> None:  # fmt: skip
    """Find, on held-out text, what a model should run for each share of its compute, and write it into its manifest.

    Compute is the share of the FLOPs of a dense pass that is executed. For each of ten, from the least the model can
    do (or a quarter) to everything, the thresholds of experts, heads, layers and exits are chosen together for the
    least loss, each moving one way only, so that the dial is monotone. What stands in the table was measured on the
    other half of the text. From then on generate and bench know --compute, --target-ms and --target-loss, and for
    models with exits --agreement.

    A small model takes a minute or two. Ctrl-C leaves the model as it was.
    """
    if folder and model:
        raise click.UsageError("found two models, expected one: give MODEL or --model FOLDER")
    check_plot(plot_path)
    from ..calibration.calibrate import CalibrateParams
    from ..calibration.calibrate import calibrate as measure
    from ..calibration.tables import plot, show
    from ..format.locate import find_model
    from ..terminal.drawing import beside, draw
    from ..terminal.progress import Progress

    params = CalibrateParams(
        data=Path(data) if data else None, tokens=tokens, agreement=agreement, prompt_tokens=prompt_tokens,
        new_tokens=new_tokens, repeats=repeats, seed=seed,
    )  # fmt: skip
    place = find_model(folder or model)
    try:
        with Progress() as progress:
            result = measure(place, params, progress, device=device, threads=threads, verify=verify)
    except KeyboardInterrupt:
        click.echo(f"\nstopped; {place} is as it was", err=True)
        ctx.exit(EXIT_INTERRUPTED)
    if as_json:
        click.echo(json.dumps({"model": str(place), **result.as_json()}))
    else:
        show(result)
    draw(partial(plot, result, str(place)), Path(plot_path) if plot_path else beside(place, "calibration"),
         asked=bool(plot_path))  # fmt: skip
    click.echo(f"wrote the curve into {place / 'manifest.json'}", err=True)
    click.echo(
        'next: adaptive generate "..." --compute 0.5' + (f" --model {place}" if folder or model else ""), err=True
    )
