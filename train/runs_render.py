"""What a person reads of runs: tables, curves in the terminal, and a picture."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .chart import Curve, chart
from .metrics import read_metrics
from .progress import duration, rate
from .runs import Summary, changed

PLAIN_WIDTH = 200
"""Columns where stdout is no terminal."""


def console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def table(*columns: str) -> Table:
    """A table without lines: the first column is a name, the others are numbers."""
    made = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left", no_wrap=number == 0, overflow="fold")
    return made


def cells(one: Summary) -> dict[str, str]:
    """The figures of a run by the name of their column."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else f"{value:{form}}"

    return {
        "state": one.state,
        "steps": str(one.step) if one.steps is None else f"{one.step}/{one.steps}",
        "loss": number(one.loss, ".4f"),
        "val": number(one.val_loss, ".4f"),
        "experts": number(one.usage.get("experts_per_token"), ".2f"),
        "heads": number(one.usage.get("heads_per_token"), ".2f"),
        "layers": number(one.usage.get("layers_per_token"), ".2f"),
        "tokens/s": "-" if one.tokens_per_second is None else rate(one.tokens_per_second),
        "time": "-" if one.seconds is None else duration(one.seconds),
        "skipped": str(one.skipped),
    }


def show_runs(found: Sequence[Summary]) -> None:
    """A row per run."""
    made = table("run", *cells(found[0]))
    for one in found:
        made.add_row(one.name, *cells(one).values())
    console().print(made)


def show_comparison(found: Sequence[Summary], curves: Mapping[str, Curve], of: str) -> None:
    """What was set otherwise, what came out, and the curves; a column per run."""
    out = console()
    settings = table("setting", *(one.name for one in found))
    for key, values in changed(found).items():
        settings.add_row(key, *(setting(value) for value in values))
    if not settings.row_count:
        settings.add_row("none differs")
    outcome = table("outcome", *(one.name for one in found))
    columns = [cells(one) for one in found]
    for name in columns[0]:
        outcome.add_row(name, *(column[name] for column in columns))
    out.print(settings)
    out.print()
    out.print(outcome)
    out.print()
    for line in (of, *chart(curves)):
        out.print(line, markup=False, soft_wrap=True)


def setting(value: Any) -> str:
    """A setting as it would be typed, short."""
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def curves_of(runs: Sequence[Path], metric: str, by: str) -> dict[str, list[tuple[float, float]]]:
    """Run -> its points (by, metric), those that were measured."""
    return {
        path.name: [
            (float(record[by]), float(record[metric]))
            for record in read_metrics(path / "metrics.jsonl")
            if record.get(metric) is not None and record.get(by) is not None
        ]
        for path in runs
    }


def plot(curves: Mapping[str, Curve], metric: str, by: str, path: Path) -> None:
    """The curves as a picture, in the form of the suffix of `path`.

    Raises:
        ModuleNotFoundError: matplotlib is not installed. OSError: `path` cannot be written.
    """
    import matplotlib  # the tables come without it

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(8, 5))
    for name, curve in curves.items():
        if curve:
            panel.plot(*zip(*curve, strict=True), label=name, linewidth=1)
    panel.set(xlabel=by, ylabel=metric)
    panel.legend()
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=120)
    finally:
        pyplot.close(figure)


def as_json(found: Sequence[Summary]) -> list[dict[str, Any]]:
    """The figures of each run."""
    return [one.figures() for one in found]
