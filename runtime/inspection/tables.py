"""The tables of an inspection, for the terminal and the page."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from ..terminal.text import console, size
from .figures import Choice, Part, Split, Spread
from .saturation import Saturation
from .token_groups import REST

if TYPE_CHECKING:
    from .inspection import Inspection

MOST_UNITS = 160
"""Rows of units on a terminal; more are only on the page and in `--json`."""
LEAST_TOKENS = 8
"""Tokens of a group that is worth naming."""
LIFT = 1.1
"""A group is named if it uses a unit this many times as often as the average token."""


@dataclass(frozen=True)
class Sheet:
    """A table with a title."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    text_columns: int = 1
    """Number of columns, from the left, that are text; the others are numbers."""


def show(inspection: "Inspection") -> None:
    """Print everything on stdout."""
    out = console(stderr=False)
    for line in lines(inspection):
        out.print(line, markup=False)
    for sheet in sheets(inspection, MOST_UNITS):
        out.print()
        out.print(sheet.title, style="bold", markup=False)
        if sheet.columns:
            out.print(table(sheet), soft_wrap=False)


def table(sheet: Sheet) -> Table:
    """Convert to a table of rich. A token that looks like markup stays text."""
    rows = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for i, name in enumerate(sheet.columns):
        rows.add_column(name, justify="left" if i < sheet.text_columns else "right", no_wrap=i >= sheet.text_columns)
    for row in sheet.rows:
        rows.add_row(*map(Text, row))
    return rows


def lines(inspection: "Inspection") -> list[str]:
    """Summarise: the model and the text, and for each kind the number per token and the dead units."""
    read = f"{inspection.tokens} tokens of {inspection.text}"
    summary = [f"{inspection.model} · {read} · {inspection.executed_share:.1%} of dense FLOPs"]
    if inspection.teacher is not None:
        summary.append(f"teacher: {inspection.teacher}")
    for part in inspection.parts:
        number = len(part.choices[0].share)
        unit = part.name if part.name == "layers" else f"{part.name} per layer"
        summary.append(f"{unit}: {spread(part.per_token)} of {number} per token")
        dead = [(choice.layer, choice.dead) for choice in part.choices if len(choice.dead)]
        dead_units = "; ".join(_in_layer(layer, ids) for layer, ids in dead) or "none"
        summary.append(
            f"dead {part.name} (used by less than {inspection.dead_below:.3g} of a layer's tokens): {dead_units}"
        )
    weights, cache = size(inspection.weight_bytes), size(inspection.cache_bytes)
    states = f", states {size(inspection.state_bytes)} at any length" if inspection.state_bytes else ""
    summary.append(f"memory: weights {weights}; a text: keys and values up to {cache}{states}")
    if inspection.state_bytes:
        summary.append(f"mixers of the layers: {', '.join(inspection.mixers)}")
    return summary


def sheets(inspection: "Inspection", most_units: float = math.inf) -> list[Sheet]:
    """Build the tables: for every kind the layers and the units, then saturation, text classes and windows."""
    tables = []
    for part in inspection.parts:
        tables.append(choices_sheet(part))
        tables += tasks_sheets(part, most_units)
        units = units_sheet(part)
        if len(units.rows) <= most_units:
            tables.append(units)
        else:
            title = f"{units.title}: {len(units.rows)} of them, see --html FILE or --json"
            tables.append(Sheet(title, (), []))
    tables += [saturation_sheet(one) for one in inspection.saturations]
    tables.append(classes_sheet(inspection))
    if inspection.groupings[-1].name == "tasks":
        tables.append(classes_sheet(inspection, len(inspection.groupings) - 1))
    if inspection.window_uses:
        rows = [(str(use.layer), str(use.most), *spread_cells(use.window)) for use in inspection.window_uses]
        tables.append(Sheet("windows, in tokens", ("layer", "most", *SPREAD), rows))
    return tables


BY = {"classes": "by class", "positions": "by position", "tokens": "by token", "tasks": "by task"}
"""Name of a grouping -> column of its specialisation."""
NAMED = {
    "classes": ("classes", 2),
    "positions": ("positions", 1),
    "tokens": ("frequent tokens", 4),
    "tasks": ("tasks", 2),
}
"""Name of a grouping -> column that names groups of a unit, and the most that it names."""
SPREAD = ("mean", "sd", "p5", "median", "p95")


def choices_sheet(part: Part) -> Sheet:
    """Build a row per layer: number per token, evenness, specialisation, and the strongest pair."""
    by = [BY[split.name] for split in part.choices[0].splits]
    columns = ("layer", *SPREAD, "entropy", "effective", "of", "dead", *by, "together")
    rows = []
    for choice in part.choices:
        pair = choice.strongest_pair
        together = "-"
        if pair is not None:
            apart = choice.share[pair[0]] * choice.share[pair[1]]
            together = f"{pair[0]}+{pair[1]} {choice.together[pair]:.0%} (chance {apart:.0%})"
        rows.append((
            "all" if choice.layer is None else str(choice.layer), *spread_cells(choice.per_token),
            number(choice.normalised_entropy), number(choice.effective, 1), str(int(choice.free.sum())),
            str(len(choice.dead)), *(specialised(split) for split in choice.splits), together,
        ))  # fmt: skip
    return Sheet(f"{part.name}: number per token, evenness, specialisation (in brackets: by chance)",
                 columns, rows)  # fmt: skip


def units_sheet(part: Part) -> Sheet:
    """Build a row per unit: its share, and the groups that use it more often than average."""
    unit = part.name[:-1]
    depth = part.name == "layers"
    rows = []
    for choice in part.choices:
        for i, share in enumerate(choice.share):
            mark = "" if choice.free[i] else " always" if depth else " shared"
            where = () if depth else (str(choice.layer),)
            groups = [favourites(choice, split, i, NAMED[split.name][1]) for split in choice.splits]
            dead = " dead" if i in choice.dead else ""
            rows.append((*where, f"{i}{mark}{dead}", *groups, f"{share:.1%}"))
    named = [NAMED[split.name][0] for split in part.choices[0].splits]
    columns = (*([] if depth else ["layer"]), unit, *named, "share")
    title = f"{part.name}: share of the tokens that use each, and groups that use it more often than average"
    return Sheet(title, columns, rows, text_columns=len(columns) - 1)


def favourites(choice: Choice, split: Split, unit: int, most: int) -> str:
    """Name the groups whose tokens use the unit most above its share, as in `number 62% (x4.1)`."""
    share = choice.share[unit]
    named = []
    for group in np.argsort(-np.nan_to_num(split.share[:, unit]), kind="stable")[:most]:
        label, own = split.labels[group], split.share[group, unit]
        if share and split.tokens[group] >= LEAST_TOKENS and label != REST and own > LIFT * share:
            named.append(f"{label} {own:.0%} (x{own / share:.1f})")
    return ", ".join(named) or "-"


SHADES = " ░▒▓█"
"""Marks of a heat map of text, from a share of 0 to one of 1."""


def tasks_sheets(part: Part, most_units: float) -> list[Sheet]:
    """Build the heat map of units over tasks: a row per layer and unit, a column per task; none without tasks."""
    splits = [split for choice in part.choices for split in choice.splits if split.name == "tasks"]
    if not splits or sum(len(choice.share) for choice in part.choices) > most_units:
        return []
    depth = part.name == "layers"
    rows = []
    for choice, split in zip(part.choices, splits, strict=True):
        for unit in range(len(choice.share)):
            where = () if depth else (str(choice.layer),)
            rows.append((*where, str(unit), *(heat(share) for share in split.share[:, unit])))
    columns = (*([] if depth else ["layer"]), part.name[:-1], *splits[0].labels)
    title = f"{part.name}: share of each task's tokens that use each"
    return [Sheet(title, columns, rows, text_columns=1 if depth else 2)]


def heat(share: float) -> str:
    """Format a share as a cell of a heat map."""
    if math.isnan(share):
        return "-"
    return f"{share:.1%} {SHADES[min(int(share * len(SHADES)), len(SHADES) - 1)] * 2}"


def classes_sheet(inspection: "Inspection", grouping: int = 0) -> Sheet:
    """Build a row per text class, or per group of another grouping: its tokens, and what they use per layer."""
    classes = inspection.groupings[grouping]
    columns = [GROUP[classes.name], "tokens", "share", *(part.name for part in inspection.parts)]
    figures = [part.per_group(grouping) for part in inspection.parts]
    columns += [f"window of {use.layer}" for use in inspection.window_uses]
    figures += [use.by_group[grouping] for use in inspection.window_uses]
    rows = []
    for group, label in enumerate(classes.labels):
        tokens = int(classes.tokens[group])
        used = [number(figure[group], 2) for figure in figures]
        rows.append((label, str(tokens), f"{tokens / inspection.tokens:.1%}", *used))
    title = "text classes" if classes.name == "classes" else classes.name
    return Sheet(f"{title}: average use of a token of each", tuple(columns), rows)


GROUP = {"classes": "class", "tasks": "task"}
MOST_STEPS = 10
"""Columns of the saturation table, at most."""


def saturation_sheet(saturation: Saturation) -> Sheet:
    """Build a row per layer and a column per snapshot, evenly spaced if there are many."""
    number_of = len(saturation.steps)
    shown = sorted({round(i * (number_of - 1) / (MOST_STEPS - 1)) for i in range(MOST_STEPS)})
    columns = ("layer", "by chance", *(f"step {saturation.steps[i]}" for i in shown))
    rows = [
        (str(layer), number(saturation.by_chance[l]), *(number(saturation.share[l, i]) for i in shown))
        for l, layer in enumerate(saturation.layers)
    ]
    title = (
        f"{saturation.name}: saturation, the share of the choices of step {saturation.steps[-1]} that each step "
        f"already made ({saturation.tokens} tokens of held-out text)"
    )
    return Sheet(title, columns, rows)


def spread(values: Spread) -> str:
    """Format a distribution in one line."""
    low, high = number(values.p5), number(values.p95)
    return f"{number(values.mean)} (sd {number(values.deviation)}, p5 {low}, p95 {high})"


def spread_cells(values: Spread) -> tuple[str, ...]:
    """Format a distribution as cells, in the order of SPREAD."""
    return tuple(number(getattr(values, name)) for name in ("mean", "deviation", "p5", "median", "p95"))


def specialised(split: Split) -> str:
    """Format a specialisation, with its value by chance in brackets."""
    return f"{number(split.specialisation, 3)} ({number(split.by_chance, 3)})"


def number(value: float, digits: int = 2) -> str:
    """Format a number; `-` if it could not be measured."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _in_layer(layer: int | None, ids: NDArray[np.int64]) -> str:
    units = ", ".join(map(str, ids))
    return units if layer is None else f"{units} in layer {layer}"
