"""The commands `adaptive runs` and `adaptive compare`. Only click and the standard library are imported at the top."""

from __future__ import annotations

import json as json_module
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...contract.errors import UserError
from ...contract.files import user_path

if TYPE_CHECKING:
    from ..results.summary import Summary


@click.command(epilog="\b\nExample: adaptive runs")
@click.option("--json", is_flag=True, help="Print one JSON object per run.")
@click.option("--prune", is_flag=True, help="Delete the runs that died before their first checkpoint.")
def runs(json: bool, prune: bool) -> None:
    """List the runs under runs/ with their progress, losses and cost; the one trained last comes last."""
    from ..results.summary import all_runs
    from ..run.folder import RUNS

    summaries = all_runs()
    if prune:
        delete([one.name for one in summaries if one.state == "no checkpoint"], RUNS)
        summaries = all_runs()
    if not summaries and not json:
        if prune:
            return
        raise UserError(f"there is no run in {RUNS.resolve()}; train one: adaptive train quickstart --name demo")
    if json:
        for one in summaries:
            click.echo(json_module.dumps(one.figures()))
        return
    from ..results.tables import show_runs

    show_runs(summaries)
    for message in advice(summaries, RUNS):
        click.echo(message, err=True)


def delete(names: Sequence[str], runs: Path) -> None:
    """Delete the folders of these runs.

    Raises:
        UserError: One cannot be deleted.
    """
    for name in names:
        try:
            shutil.rmtree(runs / name)
        except OSError as error:
            raise UserError(f"cannot delete {runs / name}: {error.strerror}; check its permissions") from error
        click.echo(f"deleted {runs / name}", err=True)


def advice(summaries: Sequence[Summary], runs: Path) -> list[str]:
    """Return commands to type for runs that died or diverged."""
    messages = []
    for one in summaries:
        if one.state == "no checkpoint":
            config = runs / one.name / "config.yaml"
            messages.append(
                f"{one.name} died before its first checkpoint; begin it again: adaptive train {config} --name "
                f"{one.name}; or delete all such runs: adaptive runs --prune"
            )
        elif one.state == "diverged":
            messages.append(f"{one.name} diverged; see why and what to do: adaptive train --resume --name {one.name}")
    return messages


@click.command(epilog="\b\nExample: adaptive compare demo demo-2 --plot curves.png")
@click.argument("names", nargs=-1, required=True, metavar="RUN RUN...")
@click.option(
    "--metric",
    default="loss",
    show_default=True,
    help="Metric of the curves: any key of metrics.jsonl; `grad_norm/` draws the grad_norm of each layer.",
)
@click.option(
    "--by",
    type=click.Choice(["step", "seconds"]),
    default="step",
    show_default=True,
    help="Horizontal axis of the curves.",
)
@click.option("--plot", metavar="FILE", help="Also draw the curves to a .png, .svg or .pdf file.")
@click.option("--json", is_flag=True, help="Print the settings that differ and the outcomes as one JSON object.")
def compare(names: tuple[str, ...], metric: str, by: str, plot: str | None, json: bool) -> None:
    """Compare runs side by side: the settings that differ, the outcomes, the gates and the curves."""
    if plot and Path(plot).suffix not in (".png", ".svg", ".pdf"):
        raise click.BadParameter(f"found {plot!r}, expected a name ending in .png, .svg or .pdf", param_hint="--plot")

    from ..results import tables
    from ..results.lineage import best_in_lineage
    from ..results.summary import changed, summary
    from ..run.folder import named_run

    paths = [named_run(name).path for name in names]
    for path in paths:
        if not path.is_dir():
            raise UserError(f"there is no run {path}; see adaptive runs")
    summaries = [summary(path) for path in paths]
    curves = tables.curves_of(paths, metric, by)
    if not any(curves.values()):
        raise UserError(f"none of these runs has measured {metric!r}; see the keys of {paths[0] / 'metrics.jsonl'}")
    best_paths = [best_in_lineage(path) for path in paths]
    best = [None if path is None else path.name for path in best_paths]
    if json:
        figures = [{**one, "best": name} for one, name in zip(tables.as_json(summaries), best, strict=True)]
        click.echo(json_module.dumps({"settings": changed(summaries), "runs": figures}))
    else:
        tables.show_comparison(summaries, best, curves, f"{metric} by {by}")
    if plot:
        try:
            tables.plot(curves, metric, by, user_path(plot))
        except OSError as error:
            raise UserError(f"cannot write {plot}: {error.strerror}; choose another --plot FILE") from error
        click.echo(f"plot: {plot}", err=True)
