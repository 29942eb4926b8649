"""An evaluation for the terminal: a table of the points, a few lines, and a plot."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from ..terminal.text import console

Figures = dict[str, Any]

MEASURES = (
    ("loss", "loss", "{:.4f}"),
    ("perplexity", "perplexity", "{:.4g}"),
    ("bits_per_byte", "bits/byte", "{:.4f}"),
    ("kl", "KL", "{:.4f}"),
    ("agreement", "agreement", "{:.2%}"),
)
"""Key, column and format of the figures of a text."""
MOST_TASKS = 6
"""Tasks with a column; `--json` has all."""


def show(result: Figures) -> None:
    """Print the figures on stdout."""
    out = console(stderr=False)
    out.print(table(result), soft_wrap=False)
    for line in lines(result):
        out.print(line, markup=False)


def table(result: Figures) -> Table:
    """Build a table with a row per point, and one per text where there are several."""
    points = result["points"]
    first = points[0]
    usage, timed = "executed_share" in first, first["milliseconds_per_token"] is not None
    measures = [one for one in MEASURES if one[0] in first]
    several = len(first.get("data", [])) > 1
    tasks = headline_metrics(result)
    rows = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    rows.add_column("point", no_wrap=True)
    if several:
        rows.add_column("text", no_wrap=True)
    names = [*["executed", "experts", "layers"] * usage, *(one[1] for one in measures)]
    names += [f"{task} {metric.partition(',')[0]}" for task, metric in tasks]
    for name in [*names, *["ms per token", "p5 to p95"] * timed]:
        rows.add_column(name, justify="right", no_wrap=True)
    for point in points:
        cells = [point["name"], *["all"] * several]
        if usage:
            used = f"{point['experts_per_token']:.2f}", f"{point['layers_per_token']:.2f}"
            cells += [f"{point['executed_share']:.1%}", *used]
        cells += [_cell(point[key], form) for key, _, form in measures]
        cells += [_metric(point["tasks"][task], metric) for task, metric in tasks]
        if timed:
            speed = point["milliseconds_per_token"]
            cells += [f"{speed['median']:.3f}", f"{speed['p5']:.3f} - {speed['p95']:.3f}"]
        rows.add_row(*cells)
        for text in point["data"] if several else []:
            rows.add_row("", text["file"], *[""] * 3 * usage, *(_cell(text[key], form) for key, _, form in measures))
    return rows


def headline_metrics(result: Figures) -> list[tuple[str, str]]:
    """Return the first metric of each task or group that is shown: (task, key of the metric).

    A group with a metric of its own stands for its tasks.
    """
    first = {
        task: next((key for key in metrics if "," in key and "_stderr," not in key), None)
        for task, metrics in result.get("tasks", {}).items()
    }
    groups = result.get("harness", {}).get("groups", {})
    inside = {name for group, names in groups.items() if first.get(group) is not None for name in names}
    shown = [(task, metric) for task, metric in first.items() if metric is not None and task not in inside]
    return shown[:MOST_TASKS]


def standard_error(metrics: Figures, metric: str) -> float | None:
    """Return the harness's standard error of a metric, if it has one."""
    name, _, which = metric.partition(",")
    value = metrics.get(f"{name}_stderr,{which}")
    return value if isinstance(value, float | int) else None


def _metric(metrics: Figures, metric: str) -> str:
    value, error = metrics[metric], standard_error(metrics, metric)
    if not isinstance(value, float | int):
        return "-"
    return f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def lines(result: Figures) -> Iterator[str]:
    """Say what was scored, against what, and what did not fit."""
    settings = result["settings"]
    if "tokens" in result:
        yield (
            f"{result['tokens']} tokens of {', '.join(one['file'] for one in result['points'][0]['data'])}, in windows "
            f"of {settings['window']} every {settings['stride']}; each scored once, after those before it in its window"
        )
    if "against" in result:
        against = result["against"]
        yield f"KL and agreement with {against['model']} at {against['name']}"
    if result.get("harness", {}).get("truncated"):
        yield f"{result['harness']['truncated']} prompts lost their beginning: they do not fit into the context"


def plot(result: Figures, path: Path) -> None:
    """Draw the loss and the first metric of each task over the measured time, to `path` in the format of its suffix.

    Where no times were measured, the executed share stands in their place.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError: `path` cannot be written.
    """
    import matplotlib  # optional: the figures are printed without it

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points, tasks = result["points"], headline_metrics(result)
    panels = ["loss"] * ("loss" in points[0]) + ["tasks"] * bool(tasks)
    timed = points[0]["milliseconds_per_token"] is not None
    if timed:
        speeds = [point["milliseconds_per_token"] for point in points]
        places = [speed["median"] for speed in speeds]
        bars = [[s["median"] - s["p5"] for s in speeds], [s["p95"] - s["median"] for s in speeds]]
    else:
        places, bars = [100 * point["executed_share"] for point in points], None
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5.5 * len(panels), 4.5), squeeze=False)
    for panel, axis in zip(panels, axes[0], strict=True):
        if panel == "loss":
            values = [point["loss"] for point in points]
            axis.errorbar(places, values, xerr=bars, marker="o", markersize=4, capsize=2, linewidth=1)
            axis.set(ylabel="loss, nats per token")
        for task, metric in tasks if panel == "tasks" else []:
            values = [point["tasks"][task][metric] for point in points]
            errors = [standard_error(point["tasks"][task], metric) or 0 for point in points]
            label = f"{task} {metric.partition(',')[0]}"
            axis.errorbar(places, values, xerr=bars, yerr=errors, marker="o", markersize=4, capsize=2, linewidth=1,
                          label=label)  # fmt: skip
        if panel == "tasks":
            axis.set(ylabel="metric ± standard error")
            axis.legend()
        for point, x, y in zip(points, places, values, strict=True):
            # Tilted, so that the names of near points do not overlap.
            axis.annotate(point["name"], (x, y), textcoords="offset points", xytext=(3, 3), fontsize=8, rotation=35)
        unit = "measured ms per token (median, p5 to p95)" if timed else "% of the dense FLOPs executed"
        axis.set(xlim=(0, 1.4 * max(places)), xlabel=unit)
    figure.suptitle(f"{result['model']}, {result['machine']['cpu']}", fontsize=10)
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=120)
    finally:
        pyplot.close(figure)
