"""An inspection as one HTML page: the tables, the heat maps as SVG, and the text with the usage of each token.

The page is self-contained: no script, no font, no link. jinja2 escapes all that comes from the text or the model.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from ..format.files import write_output
from .figures import Choice, Floats, Part
from .plot import strip
from .saturation import Saturation
from .tables import lines, sheets

if TYPE_CHECKING:
    from ..execution.usage.cost import Usage
    from .inspection import Inspection

TEMPLATE = "inspection.html"
CELL = 14
"""Pixels of one cell."""
LETTER = 7
"""Pixels of one letter of a label, generously: an SVG does not know how wide its letters are."""
LABEL_EVERY = 5
"""Columns between two labels of steps: the number of a step is wider than a cell."""


@dataclass(frozen=True)
class Cell:
    """A square of a heat map."""

    x: float
    y: float
    value: float | None
    """0 to 1; None if nothing could be measured."""
    label: str
    """Shown when the pointer is on the cell."""


@dataclass(frozen=True)
class Map:
    """A heat map: labelled rows and columns, with lines between the layers and between the groupings."""

    title: str
    rows: list[str]
    """Labels of the rows."""
    columns: list[str]
    """Labels of the columns."""
    cells: list[Cell]
    headings: list[tuple[int, str]]
    """First column and name of each layer."""
    rules: list[int]
    """Rows before which a grouping begins."""

    @property
    def margin(self) -> int:
        """Pixels for the labels of the rows."""
        return 12 + LETTER * max(map(len, self.rows), default=0)


def write_page(inspection: "Inspection", path: Path) -> None:
    """Write the page of `inspection` to `path`.

    Raises:
        UserError: `path` cannot be written.
    """
    write_output(path, page(inspection).encode())


def page(inspection: "Inspection") -> str:
    """Render the page as text."""
    from jinja2 import Environment, StrictUndefined  # imported only for a page

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8"))
    shares = [usage.flops_share for _, usage in inspection.sample]
    least, most = min(shares, default=0.0), max(shares, default=0.0)
    tokens = [
        (text, (usage.flops_share - least) / (most - least) if most > least else 0.0, used_by(usage))
        for text, usage in inspection.sample
    ]
    return template.render(
        title=f"{inspection.model} on {inspection.text}",
        lines=lines(inspection),
        sheets=sheets(inspection),
        maps=[
            *(one for part in inspection.parts for one in maps_of(part)),
            *(saturation_map(one) for one in inspection.saturations),
        ],
        tokens=tokens,
        least=f"{least:.0%}",
        most=f"{most:.0%}",
        cell=CELL,
    )


def maps_of(part: Part) -> list[Map]:
    """Draw the shares by group over all layers, then co-activation layer by layer."""
    names, shares, begins = strip(part)
    columns = [(choice, unit) for choice in part.choices for unit in range(len(choice.share))]
    first = [next(i for i, (one, _) in enumerate(columns) if one is choice) for choice in part.choices]
    headings = [(begin, "" if choice.layer is None else f"layer {choice.layer}")
             for begin, choice in zip(first, part.choices, strict=True)]  # fmt: skip
    places = [f"{part.name[:-1]} {unit}{_of(choice)}" for choice, unit in columns]
    cells = _cells(shares, lambda row, column: f"{names[row]}, {places[column]}")
    maps = [Map(f"{part.name}: share of a group's tokens that use each", names, [str(unit) for _, unit in columns],
                cells, headings, begins)]  # fmt: skip
    if part.name == "layers":
        return maps
    return [*maps, *(_coactivation(part, choice) for choice in part.choices)]


def _coactivation(part: Part, choice: Choice) -> Map:
    unit, units = part.name[:-1], [str(i) for i in range(len(choice.share))]
    cells = _cells(
        choice.coactivation, lambda row, column: f"of the tokens that use {unit} {row}, those that use {unit} {column}"
    )
    return Map(f"{part.name} used together{_of(choice)}", units, units, cells, [], [])


def saturation_map(saturation: Saturation) -> Map:
    """Draw the saturation: layers over snapshots."""
    rows, steps = [f"layer {layer}" for layer in saturation.layers], saturation.steps
    cells = _cells(saturation.share, lambda row, column: f"{rows[row]}, step {steps[column]}")
    headings = [(column, f"{steps[column]}") for column in range(0, len(steps), LABEL_EVERY)]
    title = f"{saturation.name}: share of the choices of step {steps[-1]} that each earlier step already made"
    return Map(title, rows, [""] * len(steps), cells, headings, [])


def _cells(values: Floats, name: Callable[[int, int], str]) -> list[Cell]:
    cells = []
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            share = None if math.isnan(value) else round(float(value), 4)
            label = f"{name(row, column)}: {'no token' if share is None else f'{share:.1%}'}"
            cells.append(Cell(column * CELL, row * CELL, share, label))
    return cells


def _of(choice: Choice) -> str:
    return "" if choice.layer is None else f" of layer {choice.layer}"


def used_by(usage: "Usage") -> str:
    """Describe what one token used, with a line per layer."""
    run = set(usage.layers_run)
    lines = [f"{usage.flops_share:.0%} of dense FLOPs"]
    for layer, (experts, heads) in enumerate(zip(usage.experts, usage.heads, strict=True)):
        if layer not in run:
            lines.append(f"layer {layer}: skipped")
            continue
        window = f", window {usage.windows[layer]}" if usage.windows[layer] else ""
        lines.append(f"layer {layer}: experts {_ids(experts)}, heads {_ids(heads)}{window}")
    return "\n".join(lines)


def _ids(ids: tuple[int, ...]) -> str:
    return " ".join(map(str, ids)) or "-"
