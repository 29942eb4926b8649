"""A calibration for the terminal: a table of the curve, a note on its times, and a plot."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from ..terminal.text import console

if TYPE_CHECKING:
    from .calibrate import Calibrated


def show(result: "Calibrated") -> None:
    """Print the curve on stdout."""
    out = console(stderr=False)
    out.print(table(result), soft_wrap=False)
    for line in lines(result):
        out.print(line, markup=False)


def table(result: "Calibrated") -> Table:
    """Build a table with a row per point, with heads and times if the model has them."""
    points = result.curve.points
    heads, timed = result.routes_heads, points[0].milliseconds_per_token is not None
    rows = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    names = ["compute", "executed", "loss", "bits/byte", "KL", "agreement", "experts", *["heads"] * heads, "layers"]
    for name in [*names, "exit at", *["ms per token", "p5 to p95"] * timed]:
        rows.add_column(name, justify="right", no_wrap=True)
    for point in points:
        leave = min(point.thresholds.exit_threshold)
        speed = point.milliseconds_per_token
        rows.add_row(
            f"{point.compute:.3f}",
            f"{point.executed_share:.1%}",
            f"{point.loss:.4f}",
            f"{point.bits_per_byte:.4f}",
            f"{point.kl or 0:.4f}",
            f"{point.agreement or 0:.2%}",
            f"{point.experts_per_token:.2f}",
            *[f"{point.heads_per_token:.2f}"] * heads,
            f"{point.layers_per_token:.2f}",
            "-" if leave == 1 else f"{leave:.3f}",
            *([f"{speed.median:.3f}", f"{speed.p5:.3f} - {speed.p95:.3f}"] if speed else []),
        )
    return rows


def lines(result: "Calibrated") -> list[str]:
    """Report whether time follows compute, the pairs where it does not, and the exits of each agreement."""
    curve = result.curve
    report = [f"measured on {curve.tokens} tokens of {curve.text} that no threshold was chosen on; executed FLOPs rise"]
    if curve.points[0].milliseconds_per_token is not None:
        pairs = [f"{less:.3g} took no less than {more:.3g}" for less, more in result.time_falls]
        report += ["measured time does not rise everywhere:", *pairs] if pairs else ["measured time rises with them"]
    if curve.expert_rule is not None:
        names = {"mass": "by their share of the mass", "ratio": "by their ratio to the first"}
        means = ", ".join(f"{names[rule]} {loss:.4f}" for rule, loss in sorted(curve.rule_losses.items()))
        report.append(f"mean loss over the same FLOPs, where experts are left out {means}; the lower one is the dial")
    report += [
        f"agreement {one.share:g} (confidence {one.confidence:g}): leave above {one.exit_threshold:g}; "
        f"{one.measured:.2%} of the tokens agreed, {one.layers_per_token:.2f} layers per token"
        for one in curve.agreement
    ]
    return report


def plot(result: "Calibrated", name: str, path: Path) -> None:
    """Draw loss and measured time over the executed share, to `path` in the format of its suffix.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError: `path` cannot be written.
    """
    import matplotlib  # optional: the figures are printed without it

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = result.curve.points
    executed = [100 * point.executed_share for point in points]
    speeds = [point.milliseconds_per_token for point in points if point.milliseconds_per_token is not None]
    figure, panels = pyplot.subplots(1, 2 if speeds else 1, figsize=(11 if speeds else 6, 4.5), squeeze=False)
    panels[0][0].plot(executed, [point.loss for point in points], marker="o", markersize=4)
    panels[0][0].set(xlabel="% of the dense FLOPs executed", ylabel="held-out loss, nats per token")
    if speeds:
        median = [speed.median for speed in speeds]
        bars = [[s.median - s.p5 for s in speeds], [s.p95 - s.median for s in speeds]]
        panels[0][1].errorbar(executed, median, yerr=bars, marker="o", markersize=4, capsize=2)
        panels[0][1].set(xlabel="% of the dense FLOPs executed", ylabel="ms per token (median, p5 to p95)",
                         ylim=(0, 1.4 * max(median)))  # fmt: skip
    figure.suptitle(f"{name}, adapting {', '.join(result.mechanisms)}\n{result.curve.machine['cpu']}", fontsize=10)
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=120)
    finally:
        pyplot.close(figure)
