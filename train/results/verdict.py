"""Whether the gates of a run hold: a verdict on each, and the report of all that lies in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config.gates import BandGate, GatesConfig
from ..run.metrics import finite

REPORT = "gates.json"
FORMAT_VERSION = 1
LEAST_NORMS = 10
"""Logged steps below which percentiles say nothing."""


@dataclass(frozen=True)
class Verdict:
    """Whether one gate holds, and by what."""

    gate: str
    passed: bool
    found: float | str | None
    """What was measured; None where it could not be, which no gate survives."""
    expected: str

    @property
    def words(self) -> str:
        """`pass 0.3124`"""
        if isinstance(self.found, float):
            found = f"{self.found:.4f}"
        else:
            found = "not measured" if self.found is None else f'"{self.found}"'
        return f"{'pass' if self.passed else 'FAIL'} {found}"

    def __str__(self) -> str:
        mark, _, found = self.words.partition(" ")
        return f"{mark}  {self.gate}: {found}, expected {self.expected}"


@dataclass(frozen=True)
class Report:
    """The verdicts at the end of a run."""

    step: int
    parent: str | None
    best: str | None
    """The run that stands as the best since: this one where its gates hold, else what stood before; None if nothing."""
    asked: dict[str, Any]
    """The gates, as in the config."""
    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        return all(each.passed for each in self.verdicts)

    @property
    def failed(self) -> list[str]:
        """The names of the gates that do not hold."""
        return [each.gate for each in self.verdicts if not each.passed]

    def to_json(self) -> str:
        return json.dumps(
            {"format_version": FORMAT_VERSION, "passed": self.passed, **asdict(self)}, indent=1, allow_nan=False
        )


def read_report(run: Path) -> Report | None:
    """The report in the folder `run`; None where there is none, or none that this program can read."""
    try:
        content = json.loads((run / REPORT).read_bytes())
        if content["format_version"] != FORMAT_VERSION:
            return None
        names = ("step", "parent", "best", "asked")
        verdicts = tuple(Verdict(**each) for each in content["verdicts"])
        return Report(**{name: content[name] for name in names}, verdicts=verdicts)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class Seen:
    """What the gates are held against; None is what was not measured."""

    losses: Mapping[str, float | None]
    """`held_out` and `training`."""
    experts_per_token: float | None
    records: Sequence[Mapping[str, Any]]
    """Of metrics.jsonl."""
    answer: str | None = None
    rivals: Mapping[str, float | None] | None = None
    """Run -> the loss that this one may not exceed: the parent, and the best since."""


def judge(gates: GatesConfig, seen: Seen) -> tuple[Verdict, ...]:
    """A verdict on each gate that is asked for."""
    found: list[Verdict] = []
    loss = seen.losses[gates.loss]
    if gates.max_loss is not None:
        found.append(at_most("max_loss", loss, gates.max_loss, f"{gates.loss} loss of at most {gates.max_loss:g}"))
    if gates.no_worse_than_parent:
        rivals = seen.rivals or {}
        measured = {name: value for name, value in rivals.items() if value is not None}
        known = ", ".join(f"{value:.4f} of {name}" for name, value in measured.items())
        limit = min(measured.values()) if len(measured) == len(rivals) and measured else None
        expected = f"{gates.loss} loss of at most {known or 'what the parent has, which has none'}"
        found.append(at_most("no_worse_than_parent", loss, limit, expected))
    if gates.experts_per_token is not None:
        low, high = gates.experts_per_token
        used = seen.experts_per_token
        holds = used is not None and low <= used <= high
        found.append(Verdict("experts_per_token", holds, finite(used), f"{low:g} to {high:g}"))
    if gates.gradient_band is not None:
        found.append(band(gates.gradient_band, seen))
    if gates.answer is not None:
        said = None if seen.answer is None else " ".join(seen.answer.split())
        holds = said is not None and " ".join(gates.answer.contains.split()) in said
        found.append(Verdict("answer", holds, said, f'"{gates.answer.contains}" in it'))
    return tuple(found)


def at_most(gate: str, value: float | None, limit: float | None, expected: str) -> Verdict:
    """A loss that is no number holds nothing."""
    return Verdict(gate, value is not None and limit is not None and value <= limit, finite(value), expected)


def band(gate: BandGate, seen: Seen) -> Verdict:
    """The spread of the first block's gradient norm over the span that the gate states."""
    start = "the end of the warm-up" if gate.start is None else f"{gate.start:g} of the schedule"
    until = "the end" if gate.until_loss is None else f"a loss below {gate.until_loss:g}"
    norms = norms_in_span(seen.records, gate.start, gate.until_loss)
    expected = (
        f"95th percentile at most {gate.most:g} times the 5th, over the {len(norms)} logged steps from {start} "
        f"to {until}"
    )
    if len(norms) < LEAST_NORMS:
        return Verdict("gradient_band", False, None, f"{expected} ({LEAST_NORMS} at least)")
    low, high = (float(each) for each in np.percentile(norms, (5, 95)))
    ratio = high / low if low > 0 else float("inf")
    return Verdict("gradient_band", ratio <= gate.most, finite(ratio), expected)


def norms_in_span(records: Sequence[Mapping[str, Any]], start: float | None, until_loss: float | None) -> list[float]:
    """The first block's norms from the first record at `start` of the schedule on, or after the warm-up where that is
    None, until one whose loss is below."""
    key, least = ("warmup", 1.0) if start is None else ("schedule_progress", start)
    norms: list[float] = []
    begun = False
    for record in records:
        placed, loss = record.get(key), record.get("loss")
        begun = begun or (placed is not None and placed >= least)
        if not begun:
            continue
        if until_loss is not None and loss is not None and loss < until_loss:
            break
        if record.get("first_block_grad_norm") is not None and not record.get("skipped"):
            norms.append(record["first_block_grad_norm"])
    return norms
