"""The command `adaptive calibrate`."""

import json
from functools import partial
from pathlib import Path

import click

from ...contract.errors import EXIT_INTERRUPTED
from .options.common import PATH, check_plot, model_options, option_names, timed_text_options


@click.command(epilog="\b\nExample: adaptive calibrate --tokens 8192")
@click.argument("folder", required=False, metavar="[MODEL]")
@click.option(
    "--data",
    type=PATH,
    metavar="FILE",
    help="Text that the model was not trained on; by default heldout.txt of the run.",
)
@click.option("--tokens", type=int, default=16384, show_default=True,
              help="Tokens of the text, at least 512: half to choose on, half to report on.")  # fmt: skip
@click.option("--agreement", type=float, multiple=True, metavar="SHARE", default=(0.9, 0.95, 0.99), show_default=True,
              help="Share of tokens that early exits must keep, above 0, below 1; repeat for several.")  # fmt: skip
@timed_text_options
@click.option(
    "--repeats", type=int, default=11, show_default=True, help="Timing: rounds, at least 0; 0 measures no times."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the order in which points are timed, at least 0."
)
@click.option("--plot", "plot_path", type=PATH, metavar="FILE", help="Plot of the curve: a .png, .svg or .pdf file.")
@click.option("--json", "as_json", is_flag=True, help="Print the curve as one JSON object.")
@model_options
@click.pass_context
def calibrate(
    ctx: click.Context, folder: str | None, model: str | None, data: Path | None, tokens: int,
    agreement: tuple[float, ...], prompt_tokens: int, new_tokens: int, repeats: int, seed: int, plot_path: Path | None,
    as_json: bool, device: str, target: str, threads: int | None, verify: bool,
) -> None:  # fmt: skip
    """Find the thresholds of least loss for each share of the compute, and write them into the model's manifest.

    Compute is the executed share of the FLOPs of a dense pass, in which everything runs. The curve has ten points or
    more, from the least compute of the model (but not below a quarter) to a dense pass. At each point, the thresholds
    of experts, heads, layers and exits are chosen together on one half of a held-out text; from point to point each
    threshold moves in one direction only, so that more compute never runs less. The figures of the table are measured
    on the other half. Afterwards generate, bench and inspect accept --compute, --target-ms and --target-loss, and
    --agreement for a model with exits.

    A small model takes a minute or two. Ctrl-C leaves the model unchanged.
    """
    if folder and model:
        raise click.UsageError("found two models, expected one; give either MODEL or --model MODEL")
    check_plot(plot_path)
    from ..calibration.calibrate import CalibrateParams
    from ..calibration.calibrate import calibrate as measure
    from ..calibration.tables import plot, show
    from ..format.locate import find_model
    from ..terminal.drawing import beside, draw
    from ..terminal.progress import Progress

    with option_names():
        params = CalibrateParams(data=data, tokens=tokens, agreement=agreement, prompt_tokens=prompt_tokens,
                                 new_tokens=new_tokens, repeats=repeats, seed=seed)  # fmt: skip
    place = find_model(folder or model)
    try:
        with Progress() as progress:
            result = measure(place, params, progress, device=device, target=target, threads=threads, verify=verify)
    except KeyboardInterrupt:
        click.echo(f"\nstopped; {place} is unchanged", err=True)
        ctx.exit(EXIT_INTERRUPTED)
    if as_json:
        click.echo(json.dumps({"model": str(place), **result.as_json()}))
    else:
        show(result)
    draw(partial(plot, result, str(place)), plot_path or beside(place, "calibration"),
         requested=plot_path is not None)  # fmt: skip
    click.echo(f"wrote the curve into {place / 'manifest.json'}", err=True)
    click.echo(
        'next: adaptive generate "..." --compute 0.5' + (f" --model {place}" if folder or model else ""), err=True
    )
