"""What a person reads of an inspection: sheets of plain words, which the terminal and the page both show."""

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..terminal.text import PLAIN_WIDTH
from .figures import Choice, Part, Split, Spread
from .saturation import Saturation
from .token_groups import REST

if TYPE_CHECKING:
    from .inspect import Inspection

MOST_UNITS = 160  # rows of units on a terminal; beyond, the page and `--json` have them
LEAST_TOKENS = 8  # of a group that is worth a word
LIFT = 1.1  # how much more often than the average token


@dataclass(frozen=True)
class Sheet:
    """A table: the first `words` columns are text, all others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    words: int = 1


def show(inspection: "Inspection") -> None:
    """Everything on stdout."""
    out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    for line in lines(inspection):
        out.print(line, markup=False)
    for sheet in sheets(inspection, MOST_UNITS):
        out.print()
        out.print(sheet.title, style="bold", markup=False)
        if sheet.columns:
            out.print(table(sheet), soft_wrap=False)


def table(sheet: Sheet) -> Table:
    """Cells as they are: a token that looks like markup is text."""
    rows = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for i, name in enumerate(sheet.columns):
        rows.add_column(name, justify="left" if i < sheet.words else "right", no_wrap=i >= sheet.words)
    for row in sheet.rows:
        rows.add_row(*map(Text, row))
    return rows


def lines(inspection: "Inspection") -> list[str]:
    """What was read with what, what each kind was used, and how to read the tables."""
    read = f"{inspection.tokens} tokens of {inspection.text}"
    found = [f"{inspection.model} · {read} · {inspection.executed_share:.1%} of dense FLOPs"]
    for part in inspection.parts:
        number = len(part.choices[0].share)
        unit = part.name if part.name == "layers" else f"{part.name} per layer"
        found.append(f"{unit}: {spread(part.per_token)} of {number} per token")
        dead = [(choice.layer, choice.dead) for choice in part.choices if len(choice.dead)]
        told = "; ".join(_in_layer(layer, ids) for layer, ids in dead) or "none"
        found.append(f"dead {part.name} (used by less than {inspection.dead_below:.3g} of a layer's tokens): {told}")
    return found


def sheets(inspection: "Inspection", most_units: float = math.inf) -> list[Sheet]:
    """Of every kind what each layer chose and what each unit is for, then the classes and the windows."""
    found = []
    for part in inspection.parts:
        found.append(choices_sheet(part))
        units = units_sheet(part)
        if len(units.rows) <= most_units:
            found.append(units)
        else:
            told = f"{units.title}: {len(units.rows)} of them, see --html FILE or --json"
            found.append(Sheet(told, (), []))
    found += [saturation_sheet(one) for one in inspection.saturations]
    found.append(classes_sheet(inspection))
    if inspection.looks:
        rows = [(str(look.layer), str(look.most), *spread_cells(look.window)) for look in inspection.looks]
        found.append(Sheet("windows, in tokens", ("layer", "most", *SPREAD), rows))
    return found


SPREAD = ("mean", "sd", "p5", "median", "p95")


def choices_sheet(part: Part) -> Sheet:
    """A row per layer: how many, how evenly, how well groups tell which, and which pair goes together."""
    columns = ("layer", *SPREAD, "entropy", "as if", "of", "dead", "by class", "by position", "by token", "together")
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
    return Sheet(f"{part.name}: how many per token, how evenly, how specialised (in brackets: by chance)",
                 columns, rows)  # fmt: skip


def units_sheet(part: Part) -> Sheet:
    """A row per unit: its share, and for which groups it is used more often than on average."""
    unit = part.name[:-1]
    depth = part.name == "layers"
    rows = []
    for choice in part.choices:
        for i, share in enumerate(choice.share):
            mark = "" if choice.free[i] else " always" if depth else " shared"
            where = () if depth else (str(choice.layer),)
            told = [favourites(choice, split, i, most) for split, most in zip(choice.splits, (2, 1, 4), strict=True)]
            dead = " dead" if i in choice.dead else ""
            rows.append((*where, f"{i}{mark}{dead}", *told, f"{share:.1%}"))
    columns = (*([] if depth else ["layer"]), unit, "classes", "positions", "frequent tokens", "share")
    title = f"{part.name}: used by which share of the tokens, and for what more often than on average"
    return Sheet(title, columns, rows, words=len(columns) - 1)


def favourites(choice: Choice, split: Split, unit: int, most: int) -> str:
    """The groups whose tokens use the unit most above its share: `number 62% (x4.1)`."""
    share = choice.share[unit]
    told = []
    for group in np.argsort(-np.nan_to_num(split.share[:, unit]), kind="stable")[:most]:
        label, own = split.labels[group], split.share[group, unit]
        if share and split.tokens[group] >= LEAST_TOKENS and label != REST and own > LIFT * share:
            told.append(f"{label} {own:.0%} (x{own / share:.1f})")
    return ", ".join(told) or "-"


def classes_sheet(inspection: "Inspection") -> Sheet:
    """A row per text class: how many tokens, and what they use per layer."""
    classes = inspection.groupings[0]
    columns = ["class", "tokens", "share", *(part.name for part in inspection.parts)]
    figures = [part.per_group(0) for part in inspection.parts]
    columns += [f"window of {look.layer}" for look in inspection.looks]
    figures += [look.by_group[0] for look in inspection.looks]
    rows = []
    for group, label in enumerate(classes.labels):
        tokens = int(classes.tokens[group])
        used = [number(figure[group], 2) for figure in figures]
        rows.append((label, str(tokens), f"{tokens / inspection.tokens:.1%}", *used))
    return Sheet("text classes: what a token of each uses on average", tuple(columns), rows)


MOST_STEPS = 10


def saturation_sheet(saturation: Saturation) -> Sheet:
    """A row per layer, a column per snapshot: evenly spaced ones where there are many."""
    number_of = len(saturation.steps)
    shown = sorted({round(i * (number_of - 1) / (MOST_STEPS - 1)) for i in range(MOST_STEPS)})
    columns = ("layer", "by chance", *(f"step {saturation.steps[i]}" for i in shown))
    rows = [
        (str(layer), number(saturation.by_chance[l]), *(number(saturation.share[l, i]) for i in shown))
        for l, layer in enumerate(saturation.layers)
    ]
    title = (
        f"{saturation.name}: saturation, the share of the choices of step {saturation.steps[-1]} that each step made "
        f"already ({saturation.tokens} tokens of held-out text)"
    )
    return Sheet(title, columns, rows)


def spread(values: Spread) -> str:
    low, high = number(values.p5), number(values.p95)
    return f"{number(values.mean)} (sd {number(values.deviation)}, p5 {low}, p95 {high})"


def spread_cells(values: Spread) -> tuple[str, ...]:
    return tuple(number(getattr(values, name)) for name in ("mean", "deviation", "p5", "median", "p95"))


def specialised(split: Split) -> str:
    return f"{number(split.specialisation, 3)} ({number(split.by_chance, 3)})"


def number(value: float, digits: int = 2) -> str:
    """`-` for what could not be measured."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _in_layer(layer: int | None, ids: NDArray[np.int64]) -> str:
    told = ", ".join(map(str, ids))
    return told if layer is None else f"{told} in layer {layer}"
