"""What a person reads of runs: tables, curves in the terminal, and a picture."""

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
        "alarms": str(one.alarms or "-"),
        "best at": best_before(one),
        "gates": gates_in_short(one),
        "parent": one.parent or "-",
    }


SOMETIMES = ("alarms", "best at", "gates", "parent")
"""Columns that are left out where no run has anything in them."""


def best_before(one: Summary) -> str:
    """The step of the best checkpoint and its loss, where it is not the newest."""
    best = one.best_checkpoint
    return "-" if best is None or best.step == one.step else f"{best.step} ({best.val_loss:.4f})"


def gates_in_short(one: Summary) -> str:
    """`pass`, or the gates that failed, or that it is not known yet."""
    if not one.gated:
        return "-"
    if one.report is None:
        return "not yet"
    return "pass" if one.report.passed else f"FAIL: {', '.join(one.report.failed)}"


def rows_of(found: Sequence[Summary]) -> list[dict[str, str]]:
    """The cells of each run, without the columns that are empty in all."""
    rows = [cells(one) for one in found]
    empty = {name for name in SOMETIMES if all(row[name] == "-" for row in rows)}
    return [{name: cell for name, cell in row.items() if name not in empty} for row in rows]


def show_runs(found: Sequence[Summary]) -> None:
    """A row per run."""
    rows = rows_of(found)
    made = table("run", *rows[0])
    for one, row in zip(found, rows, strict=True):
        made.add_row(one.name, *row.values())
    console().print(made)


def show_comparison(found: Sequence[Summary], best: Sequence[str | None], curves: Mapping[str, Curve], of: str) -> None:
    """What was set otherwise, what came out, what became of the gates, and the curves; a column per run.

    `best` says for each run which stands as the best in its line.
    """
    out = console()
    settings = table("setting", *(one.name for one in found))
    for key, values in changed(found).items():
        settings.add_row(key, *(setting(value) for value in values))
    if not settings.row_count:
        settings.add_row("none differs")
    outcome = table("outcome", *(one.name for one in found))
    columns = rows_of(found)
    for name in columns[0]:
        outcome.add_row(name, *(column[name] for column in columns))
    tables = [settings, outcome]
    if any(one.gated for one in found):
        tables.append(verdicts(found, best))
    for each in tables:
        out.print(each)
        out.print()
    for line in (of, *chart(curves)):
        out.print(line, markup=False, soft_wrap=True)


def verdicts(found: Sequence[Summary], best: Sequence[str | None]) -> Table:
    """Two rows per gate, what was found and what was expected, and one for the run that stands as the best."""
    by_run = [{each.gate: each for each in one.report.verdicts} if one.report else {} for one in found]
    made = table("gate", *(one.name for one in found))
    for gate in dict.fromkeys(gate for row in by_run for gate in row):
        shown = [row.get(gate) for row in by_run]
        made.add_row(gate, *("-" if each is None else on_one_line(each.words) for each in shown))
        made.add_row("  expected", *("-" if each is None else on_one_line(each.expected) for each in shown))
    made.add_row("stands as best", *(name or "-" for name in best))
    return made


def on_one_line(words: str) -> Text:
    """Words of any length in a cell: what does not fit ends in an ellipsis; --json has the whole."""
    return Text(words, no_wrap=True, overflow="ellipsis")


def setting(value: Any) -> str:
    """A setting as it would be typed, short."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(setting, value)) + "]"
    if isinstance(value, Mapping):
        given = {key: each for key, each in value.items() if each is not None}
        return "{" + ", ".join(f"{key}: {setting(each)}" for key, each in given.items()) + "}"
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def curves_of(runs: Sequence[Path], metric: str, by: str) -> dict[str, list[tuple[float, float]]]:
    """Run -> its points (by, metric), those that were measured; of a metric that ends in `/`, those of each layer."""
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
