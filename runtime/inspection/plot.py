"""The heat maps of an inspection as a picture. N units of a layer, G groups."""

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .figures import Floats, Part

if TYPE_CHECKING:
    from .inspection import Inspection

LONGEST = 16
"""Letters of a row's label, at most."""
PANELS = 8
"""Co-activation panels side by side."""
MOST_LINES = 12
"""Layers that a legend names, at most."""
MOST_LABELS = 64
"""Units that get a number each, at most."""


def strip(part: Part) -> tuple[list[str], Floats, list[int]]:
    """Lay out all groups as rows over all units of all layers as columns. The first row is of all tokens.

    Returns:
        Labels of the rows, shares, and the rows at which the groupings begin.
    """
    labels, rows, begins = ["all tokens"], [np.concatenate([choice.share for choice in part.choices])], []
    for i, one in enumerate(part.choices[0].splits):
        begins.append(len(labels))
        labels += [label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…" for label in one.labels]
        rows += list(np.concatenate([choice.splits[i].share for choice in part.choices], axis=1))
    return labels, np.array(rows), begins


def plot(inspection: "Inspection", path: Path) -> None:
    """Draw for each kind the shares by group, the number per token and co-activation, in the format of the suffix.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError: `path` cannot be written.
    """
    import matplotlib  # optional: the figures are printed without it

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parts = inspection.parts
    pairs = [len(part.choices) if part.name != "layers" else 0 for part in parts]
    rows = max((len(strip(part)[0]) for part in parts), default=1)
    heights: list[float] = []
    for number in pairs:
        heights += [1.2 + 0.2 * rows, *[2.2 * math.ceil(number / PANELS)] * (number > 0)]
    heights += [1.0 + 0.3 * len(inspection.window_uses)] * bool(inspection.window_uses)
    heights += [2.8] * bool(inspection.saturations)
    widest = max((strip(part)[1].shape[1] for part in parts), default=8)
    figure = pyplot.figure(figsize=(min(max(13.0, 5 + 0.2 * widest), 40.0), sum(heights) + 0.6), layout="constrained")
    bands = list(np.ravel(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)))
    for part, number in zip(parts, pairs, strict=True):
        _strip(bands.pop(0), part)
        if number:
            _coactivation(bands.pop(0), part)
    if inspection.window_uses:
        _windows(bands.pop(0), inspection)
    if inspection.saturations:
        _saturation(bands.pop(0), inspection)
    figure.suptitle(f"{inspection.model}, {inspection.tokens} tokens of {inspection.text}", fontsize=11)
    try:
        with warnings.catch_warnings():
            # A character that the font lacks is drawn as a box; the tables show it.
            warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
            figure.savefig(path, dpi=110)
    finally:
        pyplot.close(figure)


def _strip(band: Any, part: Part) -> None:
    """Draw the shares by group on the left, the number per token on the right."""
    labels, shares, begins = strip(part)
    band.suptitle(f"{part.name}: share of a group's tokens that use each", fontsize=10)
    left, right = band.subplots(1, 2, width_ratios=(4, 1))
    image = _heat(left, shares, 1.0)
    band.colorbar(image, ax=left, fraction=0.03, pad=0.01)
    left.set_yticks(range(len(labels)), labels, fontsize=7, parse_math=False)
    for begin in begins:
        left.axhline(begin - 0.5, color="black", linewidth=1)
    sizes = [len(choice.share) for choice in part.choices]
    edges = np.cumsum([0, *sizes])
    for edge in edges[1:-1]:
        left.axvline(edge - 0.5, color="black", linewidth=1)
    if edges[-1] <= MOST_LABELS:
        left.set_xticks(range(edges[-1]), [str(i) for size in sizes for i in range(size)], fontsize=7)
    else:
        left.set_xticks([])
    if part.name == "layers":
        left.set_xlabel("layer", fontsize=8)
    else:
        over = left.secondary_xaxis("top")
        over.set_xticks((edges[:-1] + edges[1:] - 1) / 2, [f"layer {choice.layer}" for choice in part.choices])
        over.tick_params(length=0, labelsize=8)
        left.set_xlabel(part.name[:-1], fontsize=8)
    most = max(sizes)
    counts = np.full((len(sizes), most + 1), math.nan)
    for row, choice in zip(counts, part.choices, strict=True):
        row[: len(choice.how_many)] = choice.how_many
    image = _heat(right, counts, 1.0)
    right.set_title("how many: share of the tokens", fontsize=8)
    names = ["all" if choice.layer is None else f"layer {choice.layer}" for choice in part.choices]
    right.set_yticks(range(len(sizes)), names, fontsize=7)
    right.tick_params(axis="x", labelsize=7)
    right.set_xlabel(f"{part.name} of one token", fontsize=8)


def _coactivation(band: Any, part: Part) -> None:
    """Draw a panel per layer; row i is of the tokens that used unit i."""
    unit = part.name[:-1]
    band.suptitle(f"co-activation: of the tokens that use {unit} i (row), the share that uses {unit} j", fontsize=10)
    columns = min(len(part.choices), PANELS)
    panels = np.ravel(band.subplots(math.ceil(len(part.choices) / columns), columns, squeeze=False))
    image = None
    for panel, choice in zip(panels, part.choices, strict=False):
        image = _heat(panel, choice.coactivation, 1.0, aspect="equal")
        panel.set_title(f"layer {choice.layer}", fontsize=8)
        panel.tick_params(labelsize=6)
    for panel in panels[len(part.choices) :]:
        panel.axis("off")
    band.colorbar(image, ax=list(panels), fraction=0.02, pad=0.01)


def _windows(band: Any, inspection: "Inspection") -> None:
    """Draw the mean window of each text class, for each layer that has one."""
    band.suptitle("windows: mean of each text class, in tokens", fontsize=10)
    panel = band.subplots(1, 1)
    means = np.array([use.by_group[0] for use in inspection.window_uses])
    image = _heat(panel, means, max(use.most for use in inspection.window_uses))
    band.colorbar(image, ax=panel, fraction=0.03, pad=0.01)
    panel.set_yticks(range(len(means)), [f"layer {use.layer}" for use in inspection.window_uses], fontsize=7)
    panel.set_xticks(range(means.shape[1]), inspection.groupings[0].labels, fontsize=7)


def _saturation(band: Any, inspection: "Inspection") -> None:
    """Draw a panel per kind and a line per layer; dotted, in the same colour, the share by chance."""
    from matplotlib import colormaps

    band.suptitle("saturation: share of the last choices that an earlier step already made (dotted: by chance)",
                  fontsize=10)  # fmt: skip
    panels = np.ravel(band.subplots(1, len(inspection.saturations), squeeze=False))
    for panel, one in zip(panels, inspection.saturations, strict=True):
        for l, layer in enumerate(one.layers):
            colour = colormaps["viridis"](0.9 * l / max(len(one.layers) - 1, 1))
            panel.plot(one.steps, one.share[l], color=colour, linewidth=1.2, marker=".", markersize=4,
                       label=f"layer {layer}")  # fmt: skip
            panel.axhline(one.by_chance[l], color=colour, linewidth=0.8, linestyle=":")
        panel.set_ylim(0, 1.02)
        panel.set_title(one.name, fontsize=8)
        panel.set_xlabel("step", fontsize=8)
        panel.tick_params(labelsize=7)
        if len(one.layers) <= MOST_LINES:
            panel.legend(fontsize=7, loc="lower right")


def _heat(panel: Any, values: Floats, most: float, aspect: str = "auto") -> Any:
    """Draw values from 0 to `most`; grey where nothing could be measured."""
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    colours = colormaps["viridis"].with_extremes(bad="#d0d0d0")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    return panel.imshow(values, vmin=0, vmax=most, cmap=colours, aspect=aspect, interpolation="nearest")
