"""An inspection as one page: the tables, the heat maps as drawings, and the text with what each token used.

The page stands alone: no script, no font, no address; what comes from the text or the model is escaped by jinja2.
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
    from ..execution.cost import Usage
    from .inspect import Inspection

TEMPLATE = "inspection.html"
CELL = 14  # pixels of one cell
LETTER = 7  # pixels of one letter of a label, generously: a drawing does not know how wide its letters are


@dataclass(frozen=True)
class Cell:
    """A square of a heat map; `value` None where nothing could be measured."""

    x: float
    y: float
    value: float | None  # 0 to 1
    told: str


@dataclass(frozen=True)
class Map:
    """A drawing: rows and columns with a label each, and lines between the layers and between the groupings."""

    title: str
    rows: list[str]
    columns: list[str]
    cells: list[Cell]
    heads: list[tuple[int, str]]  # first column and name of each layer
    rules: list[int]  # rows before which a grouping begins

    @property
    def margin(self) -> int:
        """Pixels that the labels of the rows take."""
        return 12 + LETTER * max(map(len, self.rows), default=0)


def write_page(inspection: "Inspection", path: Path) -> None:
    """Raises UserError where `path` cannot be written."""
    write_output(path, page(inspection).encode())


def page(inspection: "Inspection") -> str:
    """The page as text."""
    from jinja2 import Environment, StrictUndefined  # here: only who asks for a page waits for it

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
    """Shares by group over all layers, then co-activation layer by layer."""
    names, shares, begins = strip(part)
    columns = [(choice, unit) for choice in part.choices for unit in range(len(choice.share))]
    first = [next(i for i, (one, _) in enumerate(columns) if one is choice) for choice in part.choices]
    heads = [(begin, "" if choice.layer is None else f"layer {choice.layer}")
             for begin, choice in zip(first, part.choices, strict=True)]  # fmt: skip
    places = [f"{part.name[:-1]} {unit}{_of(choice)}" for choice, unit in columns]
    cells = _cells(shares, lambda row, column: f"{names[row]}, {places[column]}")
    found = [Map(f"{part.name}: share of a group's tokens that use each", names, [str(unit) for _, unit in columns],
                 cells, heads, begins)]  # fmt: skip
    if part.name == "layers":
        return found
    return [*found, *(_coactivation(part, choice) for choice in part.choices)]


def _coactivation(part: Part, choice: Choice) -> Map:
    unit, units = part.name[:-1], [str(i) for i in range(len(choice.share))]
    cells = _cells(
        choice.coactivation, lambda row, column: f"of the tokens that use {unit} {row}, those that use {unit} {column}"
    )
    return Map(f"{part.name} used together{_of(choice)}", units, units, cells, [], [])


LABEL_EVERY = 5  # columns; the number of a step is wider than a cell


def saturation_map(saturation: Saturation) -> Map:
    """Layers over snapshots."""
    rows, steps = [f"layer {layer}" for layer in saturation.layers], saturation.steps
    cells = _cells(saturation.share, lambda row, column: f"{rows[row]}, step {steps[column]}")
    heads = [(column, f"{steps[column]}") for column in range(0, len(steps), LABEL_EVERY)]
    title = f"{saturation.name}: share of the choices of step {steps[-1]} that each step made already"
    return Map(title, rows, [""] * len(steps), cells, heads, [])


def _cells(values: Floats, told: Callable[[int, int], str]) -> list[Cell]:
    found = []
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            known = None if math.isnan(value) else round(float(value), 4)
            words = f"{told(row, column)}: {'no token' if known is None else f'{known:.1%}'}"
            found.append(Cell(column * CELL, row * CELL, known, words))
    return found


def _of(choice: Choice) -> str:
    return "" if choice.layer is None else f" of layer {choice.layer}"


def used_by(usage: "Usage") -> str:
    """What one token used, a line per layer."""
    run = set(usage.layers_run)
    told = [f"{usage.flops_share:.0%} of dense FLOPs"]
    for layer, (experts, heads) in enumerate(zip(usage.experts, usage.heads, strict=True)):
        if layer not in run:
            told.append(f"layer {layer}: skipped")
            continue
        window = f", window {usage.windows[layer]}" if usage.windows[layer] else ""
        told.append(f"layer {layer}: experts {_ids(experts)}, heads {_ids(heads)}{window}")
    return "\n".join(told)


def _ids(ids: tuple[int, ...]) -> str:
    return " ".join(map(str, ids)) or "-"
