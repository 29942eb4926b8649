"""Curves drawn in characters, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MARKS = "abcdefghijklmnopqrstuvwxyz"
Curve = Sequence[tuple[float, float]]


def chart(curves: Mapping[str, Curve], width: int = 72, height: int = 16) -> list[str]:
    """Draw the curves (x, y) as lines of text: each with its own letter, `*` where two meet, and a legend below.

    The vertical axis ends at the 95th percentile of all points, since the losses of the first steps would flatten the
    rest. Points above it are drawn at the edge.
    """
    shown = {name: curve for name, curve in curves.items() if curve}
    if not shown:
        return ["nothing was measured yet"]
    xs = [x for curve in shown.values() for x, _ in curve]
    ys = sorted(y for curve in shown.values() for _, y in curve)
    low, high = ys[0], ys[min(len(ys) - 1, int(0.95 * len(ys)))]
    left, right = min(xs), max(xs)
    grid = [[" "] * width for _ in range(height)]
    for mark, curve in zip(MARKS, shown.values(), strict=False):
        for x, y in curve:
            column = round((x - left) / ((right - left) or 1) * (width - 1))
            share = min(max((y - low) / ((high - low) or 1), 0.0), 1.0)
            cells = grid[height - 1 - round(share * (height - 1))]
            cells[column] = mark if cells[column] in (" ", mark) else "*"
    labels = [f"{high:.3g}", *[""] * (height - 2), f"{low:.3g}"]
    margin = max(map(len, labels))
    lines = [f"{label:>{margin}} |{''.join(cells)}".rstrip() for label, cells in zip(labels, grid, strict=True)]
    lines.append(" " * margin + " +" + "-" * width)
    ends = f"{left:.6g}{f'{right:.6g}':>{width - len(f'{left:.6g}')}}"
    lines.append(" " * (margin + 2) + ends)
    lines += [f"{mark} {name}" for mark, name in zip(MARKS, shown, strict=False)]
    return lines
