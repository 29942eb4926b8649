"""The verdict, the table and the plot of the benchmark `pays`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from page.table import table
from payoff.entrants import ADAPTIVE, DENSE, DENSE_MODELS, DIALED, ENTRANTS, EQUAL, SIZES
from payoff.measurement import PRECISIONS, TRAINED, Row

WANTED = 0.02
"""Nats by which an adaptive model should beat the dense one of equal time."""
CLOSE = 1.05
"""A dense model up to this many times as slow counts as one of equal time."""


class Point(NamedTuple):
    """A model at a point of its dial: means over the seeds."""

    entrant: str
    point: str
    seeds: int
    milliseconds: float
    nats: float
    bits: float


def points(rows: Iterable[Row], precision: str) -> list[Point]:
    """Average over the seeds; of calibrated points only seed 0 counts, since each seed has other ones."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.precision == precision and (row.point == TRAINED or row.seed == 0):
            groups.setdefault((row.entrant, row.point), []).append(row)
    return [
        Point(
            *key,
            len(own),
            *(float(np.mean([getattr(row, name) for row in own])) for name in ("milliseconds", "nats", "bits")),
        )
        for key, own in groups.items()
    ]


def dense_at(dense: Sequence[Point], milliseconds: float) -> float | None:
    """Return the loss of a dense model of this time; None if all are slower.

    Between two measured models it is interpolated over the logarithm of the time. A model that is slower and no better
    than another does not count.
    """
    front: list[Point] = []
    for point in sorted(dense, key=lambda each: each.milliseconds):
        if not front or point.nats < front[-1].nats:
            front.append(point)
    if not front or milliseconds * CLOSE < front[0].milliseconds:
        return None
    times = np.log([point.milliseconds for point in front])
    return float(np.interp(np.log(milliseconds), times, [point.nats for point in front]))


def rivals(rows: Sequence[Row], precision: str = "int8") -> tuple[str, ...]:
    """Return the adaptive model of least loss in one seed, then its rivals: the dense ones that are not slower.

    The best rival comes first. Where none is as fast, the fastest is the rival. Empty unless both kinds were measured.
    """
    trained = [point for point in points(rows, precision) if point.point == TRAINED]
    adaptive = [point for point in trained if point.entrant in ADAPTIVE]
    dense = [point for point in trained if point.entrant in DENSE_MODELS]
    if not adaptive or not dense:
        return ()
    best = min(adaptive, key=lambda point: point.nats)
    fitting = [point for point in dense if point.milliseconds <= CLOSE * best.milliseconds]
    fitting = fitting or [min(dense, key=lambda point: point.milliseconds)]
    return best.entrant, *(point.entrant for point in sorted(fitting, key=lambda point: point.nats))


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Compare the adaptive models with dense ones of equal time, in each precision."""
    lines = []
    for precision in PRECISIONS:
        all_ = points(rows, precision)
        dense = [point for point in all_ if point.entrant in DENSE_MODELS]
        gaps = []
        for point in (each for each in all_ if each.entrant in ADAPTIVE):
            expected = dense_at(dense, point.milliseconds)
            compared = "no dense model here is as fast"
            if expected is not None:
                gap = expected - point.nats
                gaps.append((gap, point))
                compared = f"{abs(gap):.3f} nats {'better' if gap > 0 else 'worse'} than a dense model of that time"
            if point.point == TRAINED:
                lines.append(
                    f"{precision}: {point.entrant}, {point.milliseconds:.3f} ms per token, {point.nats:.3f} nats: "
                    f"{compared}"
                )
        if gaps:
            gap, point = max(gaps, key=lambda each: each[0])
            answer = "pays" if gap >= WANTED else "does not pay"
            lines.append(
                f"{precision}: the best adaptive point ({point.entrant}, dial at {point.point}) is {gap:+.3f} nats "
                f"ahead of dense at equal time, {WANTED} wanted: it {answer}"
            )
    return lines


def paired(rows: Sequence[Row], best: Sequence[str]) -> list[str]:
    """Compare the best adaptive model with each rival seed by seed, in int8: losses, and times as ratios in a round."""
    own = {
        (row.entrant, row.seed): row
        for row in rows
        if row.precision == "int8" and row.point == TRAINED and row.entrant in best
    }
    lines = []
    for (entrant, seed), other in sorted(own.items(), key=lambda item: item[0][1]):
        if entrant == best[0] or (best[0], seed) not in own:
            continue
        one = own[best[0], seed]
        low, middle, high = np.percentile(np.array(one.rounds) / np.array(other.rounds), [5, 50, 95])
        lines.append(
            f"seed {seed}: {best[0]} {one.nats:.3f} nats, {entrant} {other.nats:.3f}; {middle:.2f} "
            f"({low:.2f} to {high:.2f}) of its time"
        )
    return lines


def model_table(rows: Sequence[Row], tokens_per_step: int) -> str:
    """Return a table of the models at the thresholds of training; means over the seeds, losses with their range."""
    head = (
        "model", "seeds", "steps", "tokens, millions", "bits per byte", "nats per token", "experts", "layers", "MFLOPs",
        "int8: ms per token (5th to 95th percentile)", "MB read", "fp32: ms per token", "MB read",
    )  # fmt: skip
    lines = []
    for entrant in ENTRANTS:
        narrow, wide = (
            [row for row in rows if (row.entrant, row.precision, row.point) == (entrant, precision, TRAINED)]
            for precision in PRECISIONS
        )
        if not narrow:
            continue
        nats = [row.nats for row in narrow]
        spread = f" ± {(max(nats) - min(nats)) / 2:.3f}" if len(nats) > 1 else ""
        cells = [
            entrant,
            str(len(narrow)),
            f"{mean(narrow, 'steps'):.0f}",
            f"{mean(narrow, 'steps') * tokens_per_step / 1e6:.2f}",
            f"{mean(narrow, 'bits'):.4f}",
            f"{mean(narrow, 'nats'):.3f}{spread}",
            f"{mean(narrow, 'experts'):.2f}",
            f"{mean(narrow, 'layers'):.2f}",
            f"{mean(narrow, 'flops') / 1e6:.1f}",
            *(cell for own in (narrow, wide) for cell in (time_cell(own), f"{mean(own, 'bytes') / 1e6:.1f}")),
        ]
        lines.append(cells)
    return table(head, lines)


def time_cell(rows: Sequence[Row]) -> str:
    """Format a time with its spread."""
    return f"{mean(rows, 'milliseconds'):.3f} ({mean(rows, 'low'):.3f} to {mean(rows, 'high'):.3f})"


def mean(rows: Sequence[Row], name: str) -> float:
    """Return the mean of a field."""
    return float(np.mean([getattr(row, name) for row in rows]))


def markdown(report: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return the whole report as Markdown."""
    size, machine, twin = SIZES[report["size"]], report["machine"], report["twin"]
    costs = ", ".join(
        f"{name} {cost['seconds']:.2f} ({cost['low']:.2f} to {cost['high']:.2f})"
        for name, cost in report["costs"].items()
    )
    candidates = ", ".join(f"{width}: {time:.3f}" for width, time in twin["candidates"].items())
    caches = ", ".join(f"{name} {capacity}" for name, capacity in machine["caches"].items()) or "unknown"
    setting = (
        f"Measured {machine['date']} on {machine['cpu']}, caches {caches}. Text {report['text']}, {report['tokens']} "
        f"held-out tokens scored. Each model trained for {report['minutes']:g} minutes of one core, counted in steps "
        f"of {report['tokens_per_step']} tokens."
    )
    shapes = (
        f"{DENSE}: {size.layers} layers of {size.dim}, hidden width {size.hidden}, {size.active() / 1e6:.1f}M weights "
        f"multiplied per token. {EQUAL}: hidden width {twin['hidden']}, {size.active(twin['hidden']) / 1e6:.1f}M."
    )
    search = (
        "The width was chosen by these ms per token, untrained, in int8: adaptive "
        f"{twin['adaptive']:.3f}; dense by hidden width {candidates}."
    )
    parts = [
        setting,
        shapes,
        model_table(rows, report["tokens_per_step"]),
        memory(rows, machine["l3_bytes"]),
        "\n".join(f"- {line}" for line in verdicts(rows) + paired(rows, report["best"])),
        f"CPU seconds per training step, median (5th to 95th percentile): {costs}.",
        search,
    ]
    return "\n\n".join(parts) + "\n"


def memory(rows: Sequence[Row], l3: int | None) -> str:
    """Say what of the models fits into the last cache, and so which memory their time measures."""
    if l3 is None:
        return "The size of the last cache is unknown here, so whether the weights fit into it is not stated."
    lines = []
    for precision in PRECISIONS:
        weights = {row.entrant: row.weights for row in rows if row.precision == precision}
        inside = [name for name, size in weights.items() if size <= l3]
        outside = [name for name, size in weights.items() if size > l3]
        sizes = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in weights.items())
        lines.append(
            f"{precision}: weights {sizes}; last cache {l3 / 2**20:.0f} MiB, shared with neighbours. "
            + (f"Read from the cache: {', '.join(inside)}. " if inside else "")
            + (
                f"Larger than the cache: {', '.join(outside)}."
                if outside
                else "All fit: no time here is that of memory."
            )
        )
    return "\n".join(f"- {line}" for line in lines)


def draw(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw bits per byte over time, one panel for each precision: dense models, adaptive ones, and their dials."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, precision in zip(panels, PRECISIONS, strict=True):
        all_ = points(rows, precision)
        dense = sorted((p for p in all_ if p.entrant in DENSE_MODELS), key=lambda p: p.milliseconds)
        panel.plot([p.milliseconds for p in dense], [p.bits for p in dense], "s--", color="#2166ac", label="dense")
        seeds = [row for row in rows if row.precision == precision and row.point == TRAINED]
        panel.plot([row.milliseconds for row in seeds], [row.bits for row in seeds], "x", color="#555", markersize=4,
                   label="one seed")  # fmt: skip
        for number, entrant in enumerate(ADAPTIVE):
            own = [p for p in all_ if p.entrant == entrant]
            color = f"C{number + 1}"
            dial = sorted((p for p in own if p.point != TRAINED), key=lambda p: float(p.point))
            panel.plot([p.milliseconds for p in dial], [p.bits for p in dial], ".-", color=color, linewidth=1)
            trained = [p for p in own if p.point == TRAINED]
            label = f"{entrant}, with its dial" if entrant in DIALED else entrant
            panel.plot([p.milliseconds for p in trained], [p.bits for p in trained], "o", color=color, label=label)
        for number, point in enumerate(dense):  # above and below in turn: two may lie side by side
            panel.annotate(point.entrant, (point.milliseconds, point.bits), textcoords="offset points",
                           xytext=(6, -11 if number % 2 else 5), fontsize=7)  # fmt: skip
        panel.set_xlabel(f"{precision}: ms per token, one thread")
    panels[0].set_ylabel("held-out bits per byte")
    panels[0].legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
