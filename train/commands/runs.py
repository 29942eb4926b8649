"""The commands `adaptive runs` and `adaptive compare`. Only click and the standard library are imported up here."""

from __future__ import annotations

import json as json_module
from pathlib import Path

import click

from ...contract.errors import UserError


@click.command(epilog="\b\nExample: adaptive runs")
@click.option("--json", is_flag=True, help="One JSON object per run on stdout.")
def runs(json: bool) -> None:
    """List the runs under runs/, the one trained last at the end: how far they are, how good, and what they cost."""
    from ..results.summary import all_runs
    from ..run.folder import RUNS

    found = all_runs()
    if not found and not json:
        raise UserError(f"there is no run in {RUNS.resolve()}; train one: adaptive train quickstart --name demo")
    if json:
        for one in found:
            click.echo(json_module.dumps(one.figures()))
        return
    from ..results.tables import show_runs

    show_runs(found)


@click.command(epilog="\b\nExample: adaptive compare demo demo-2 --plot curves.png")
@click.argument("names", nargs=-1, required=True, metavar="RUN RUN...")
@click.option(
    "--metric",
    default="loss",
    show_default=True,
    help="What the curves show: any key of metrics.jsonl; `grad_norm/` shows grad_norm of each layer.",
)
@click.option("--by", type=click.Choice(["step", "seconds"]), default="step", show_default=True)
@click.option("--plot", metavar="FILE", help="Draw the curves to a .png, .svg or .pdf as well.")
@click.option("--json", is_flag=True, help="Settings that differ and outcomes as one JSON object on stdout.")
def compare(names: tuple[str, ...], metric: str, by: str, plot: str | None, json: bool) -> None:
    """Lay runs side by side: the settings in which they differ, what came out, their gates, and their curves."""
    if plot and Path(plot).suffix not in (".png", ".svg", ".pdf"):
        raise click.BadParameter(f"found {plot!r}, expected a name ending in .png, .svg or .pdf", param_hint="--plot")

    from ..results import tables
    from ..results.lineage import standing
    from ..results.summary import changed, summary
    from ..run.folder import named_run

    paths = [named_run(name).path for name in names]
    for path in paths:
        if not path.is_dir():
            raise UserError(f"there is no run {path}; see adaptive runs")
    found = [summary(path) for path in paths]
    curves = tables.curves_of(paths, metric, by)
    if not any(curves.values()):
        raise UserError(f"none of these runs has measured {metric!r}; see the keys of {paths[0] / 'metrics.jsonl'}")
    stands = [standing(path) for path in paths]
    best = [None if path is None else path.name for path in stands]
    if json:
        figures = [{**one, "best": name} for one, name in zip(tables.as_json(found), best, strict=True)]
        click.echo(json_module.dumps({"settings": changed(found), "runs": figures}))
    else:
        tables.show_comparison(found, best, curves, f"{metric} by {by}")
    if plot:
        try:
            tables.plot(curves, metric, by, Path(plot))
        except OSError as error:
            raise UserError(f"cannot write {plot}: {error.strerror}; choose another --plot FILE") from error
        click.echo(f"plot: {plot}", err=True)
