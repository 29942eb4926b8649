"""Tables and curves of runs for a terminal, and a picture of the curves."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..run.metrics import read_metrics
from ..system.progress import duration, rate
from .chart import Curve, chart
from .summary import Summary, changed

PLAIN_WIDTH = 200
"""The width if stdout is not a terminal."""


def console() -> Console:
    """Open a console on stdout."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def table(*columns: str) -> Table:
    """Make a table without lines, whose first column is a name and whose others are numbers."""
    empty = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        empty.add_column(column, justify="right" if number else "left", no_wrap=number == 0, overflow="fold")
    return empty


def cells(one: Summary) -> dict[str, str]:
    """Return the figures of a run: column -> cell."""

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
        "alarms": str(one.alarms or "-"),
        "tasks": ", ".join(f"{name} {number(task.get('val_loss'), '.4f')}" for name, task in one.tasks.items()) or "-",
        "best at": best_before(one),
        "gates": gates_in_short(one),
        "parent": one.parent or "-",
        "from": "-" if one.origin is None else Path(one.origin).name,
        "teacher": "-" if one.teacher is None else Path(one.teacher).name,
    }


SOMETIMES = ("alarms", "tasks", "best at", "gates", "parent", "from", "teacher")
"""Columns that are left out if they are empty in all runs."""


def best_before(one: Summary) -> str:
    """Return the step of the best checkpoint and its loss, if it is not the newest."""
    best = one.best_checkpoint
    return "-" if best is None or best.step == one.step else f"{best.step} ({best.val_loss:.4f})"


def gates_in_short(one: Summary) -> str:
    """Return `pass`, or the gates that failed, or `not yet`."""
    if not one.gated:
        return "-"
    if one.report is None:
        return "not yet"
    return "pass" if one.report.passed else f"FAIL: {', '.join(one.report.failed)}"


def rows_of(summaries: Sequence[Summary]) -> list[dict[str, str]]:
    """Return the cells of each run, without the columns that are empty in all."""
    rows = [cells(one) for one in summaries]
    empty = {name for name in SOMETIMES if all(row[name] == "-" for row in rows)}
    return [{name: cell for name, cell in row.items() if name not in empty} for row in rows]


def show_runs(summaries: Sequence[Summary]) -> None:
    """Print a row per run."""
    rows = rows_of(summaries)
    listing = table("run", *rows[0])
    for one, row in zip(summaries, rows, strict=True):
        listing.add_row(one.name, *map(Text, row.values()))
    console().print(listing)


def show_comparison(
    summaries: Sequence[Summary], best: Sequence[str | None], curves: Mapping[str, Curve], title: str
) -> None:
    """Print the settings that differ, the outcomes, the gates and the curves; a column per run.

    Args:
        summaries: The runs.
        best: The best run in the lineage of each.
        curves: Name -> curve.
        title: Stands above the curves.
    """
    out = console()
    settings = table("setting", *(one.name for one in summaries))
    for key, values in changed(summaries).items():
        settings.add_row(key, *(Text(setting(value)) for value in values))  # a list is no markup
    if not settings.row_count:
        settings.add_row("none differs")
    outcome = table("outcome", *(one.name for one in summaries))
    columns = rows_of(summaries)
    for name in columns[0]:
        outcome.add_row(name, *(Text(column[name]) for column in columns))
    tables = [settings, outcome]
    if any(one.tasks for one in summaries):
        tables.append(tasks_table(summaries))
    if any(one.gated for one in summaries):
        tables.append(verdicts(summaries, best))
    for each in tables:
        out.print(each)
        out.print()
    for line in (title, *chart(curves)):
        out.print(line, markup=False, soft_wrap=True)


TASK_FIGURES = {
    "loss": ("loss", ".4f"),
    "val_loss": ("val", ".4f"),
    "bits_per_byte": ("bits/byte", ".4f"),
    "val_experts_per_token": ("experts", ".2f"),
    "val_layers_per_token": ("layers", ".2f"),
    "share": ("share", ".1%"),
}
"""Key of metrics.jsonl, without the name of the task -> the name of its row and its format."""


def tasks_table(summaries: Sequence[Summary]) -> Table:
    """Make a table with the figures of each task, held-out ones but for `loss`; a column per run."""
    tasks = table("task", *(one.name for one in summaries))
    for name in dict.fromkeys(name for one in summaries for name in one.tasks):
        for key, (row, form) in TASK_FIGURES.items():
            values = [one.tasks.get(name, {}).get(key) for one in summaries]
            tasks.add_row(f"{name} {row}", *("-" if value is None else f"{value:{form}}" for value in values))
    return tasks


def verdicts(summaries: Sequence[Summary], best: Sequence[str | None]) -> Table:
    """Make a table with two rows per gate, measured and expected, and one for the best run of each lineage."""
    by_run = [{each.gate: each for each in one.report.verdicts} if one.report else {} for one in summaries]
    gates = table("gate", *(one.name for one in summaries))
    for gate in dict.fromkeys(gate for row in by_run for gate in row):
        shown = [row.get(gate) for row in by_run]
        gates.add_row(gate, *("-" if each is None else on_one_line(each.message) for each in shown))
        gates.add_row("  expected", *("-" if each is None else on_one_line(each.expected) for each in shown))
    gates.add_row("best in lineage", *(name or "-" for name in best))
    return gates


def on_one_line(message: str) -> Text:
    """Fit a message of any length into a cell, with an ellipsis where it is cut; --json has the whole."""
    return Text(message, no_wrap=True, overflow="ellipsis")


def setting(value: Any) -> str:
    """Write a setting as it would be typed, in short."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(setting, value)) + "]"
    if isinstance(value, Mapping):
        given = {key: each for key, each in value.items() if each is not None}
        return "{" + ", ".join(f"{key}: {setting(each)}" for key, each in given.items()) + "}"
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def curves_of(runs: Sequence[Path], metric: str, by: str) -> dict[str, list[tuple[float, float]]]:
    """Return the curves of a metric.

    Args:
        runs: The folders of the runs.
        metric: A key of metrics.jsonl; one that ends in `/` has a curve for each layer.
        by: The key of the horizontal axis.

    Returns:
        Run (and layer) -> its points (by, metric), where both were measured.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for path in runs:
        records = read_metrics(path / "metrics.jsonl")
        keys = dict.fromkeys(key for record in records for key in record if key.startswith(metric))
        layers = {f"{path.name} {key.removeprefix(metric)}": key for key in keys} if metric.endswith("/") else {}
        for name, key in (layers or {path.name: metric}).items():
            curves[name] = [
                (float(record[by]), float(record[key]))
                for record in records
                if record.get(key) is not None and record.get(by) is not None
            ]
    return curves


def plot(curves: Mapping[str, Curve], metric: str, by: str, path: Path) -> None:
    """Draw the curves as a picture, in the format of the suffix of `path`.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError: `path` cannot be written.
    """
    import matplotlib  # not needed for the tables

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


def as_json(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """Return the figures of each run."""
    return [one.figures() for one in summaries]
