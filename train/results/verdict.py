"""The verdict on each gate of a run, and the report on all of them in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config.gates import BandGate, GatesConfig
from ..config.run_config import RunConfig
from ..run.metrics import finite

REPORT = "gates.json"
FORMAT_VERSION = 1
LEAST_NORMS = 10
"""The fewest logged steps whose percentiles mean something."""


@dataclass(frozen=True)
class Verdict:
    """Whether one gate holds, and what was measured."""

    gate: str
    passed: bool
    found: float | str | None
    """The measured value; None if it could not be measured, which fails the gate."""
    expected: str

    @property
    def message(self) -> str:
        """The result with what was measured: `pass 0.3124`."""
        if isinstance(self.found, float):
            measured = f"{self.found:.4f}"
        else:
            measured = "not measured" if self.found is None else f'"{self.found}"'
        return f"{'pass' if self.passed else 'FAIL'} {measured}"

    def __str__(self) -> str:
        result, _, measured = self.message.partition(" ")
        return f"{result}  {self.gate}: {measured}, expected {self.expected}"


@dataclass(frozen=True)
class Report:
    """The verdicts at the end of a run."""

    step: int
    parent: str | None
    best: str | None
    """The best run of the lineage: this one if its gates hold, else the best before it; None if there is none."""
    asked: dict[str, Any]
    """The gates, as in the config."""
    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        """Whether all gates hold."""
        return all(each.passed for each in self.verdicts)

    @property
    def failed(self) -> list[str]:
        """The names of the gates that do not hold."""
        return [each.gate for each in self.verdicts if not each.passed]

    def to_json(self) -> str:
        """Write the report as JSON."""
        return json.dumps(
            {"format_version": FORMAT_VERSION, "passed": self.passed, **asdict(self)}, indent=1, allow_nan=False
        )


def read_report(run: Path) -> Report | None:
    """Read the report in the folder `run`; return None if there is none that this program can read."""
    try:
        content = json.loads((run / REPORT).read_bytes())
        if content["format_version"] != FORMAT_VERSION:
            return None
        names = ("step", "parent", "best", "asked")
        verdicts = tuple(Verdict(**each) for each in content["verdicts"])
        return Report(**{name: content[name] for name in names}, verdicts=verdicts)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def has_report(run: Path, config: RunConfig) -> bool:
    """Return whether the folder `run` has a report on exactly the gates of `config`."""
    report = read_report(run)
    gates = config.gates.model_dump(mode="json")
    return report is not None and (report.asked, report.parent) == (gates, config.parent)


def exit_code_of(report: Report | None) -> int:
    """Return 1 if a gate failed, else 0."""
    return int(report is not None and not report.passed)


@dataclass(frozen=True)
class Measurements:
    """The values that the gates compare with their limits; None for a value that was not measured."""

    losses: Mapping[str, float | None]
    """The losses `held_out` and `training`."""
    experts_per_token: float | None
    records: Sequence[Mapping[str, Any]]
    """The records of metrics.jsonl."""
    answer: str | None = None
    baselines: Mapping[str, float | None] | None = None
    """Run -> the loss that this one may not exceed: the parent, and the best of its lineage."""


def judge(gates: GatesConfig, measured: Measurements) -> tuple[Verdict, ...]:
    """Return a verdict on each gate of the config."""
    verdicts: list[Verdict] = []
    loss = measured.losses[gates.loss]
    if gates.max_loss is not None:
        verdicts.append(at_most("max_loss", loss, gates.max_loss, f"{gates.loss} loss of at most {gates.max_loss:g}"))
    if gates.no_worse_than_parent:
        baselines = measured.baselines or {}
        losses = {name: value for name, value in baselines.items() if value is not None}
        limits = ", ".join(f"{value:.4f} of {name}" for name, value in losses.items())
        limit = min(losses.values()) if len(losses) == len(baselines) and losses else None
        expected = f"{gates.loss} loss of at most {limits or 'that of the parent, which has none'}"
        verdicts.append(at_most("no_worse_than_parent", loss, limit, expected))
    if gates.experts_per_token is not None:
        low, high = gates.experts_per_token
        used = measured.experts_per_token
        holds = used is not None and low <= used <= high
        verdicts.append(Verdict("experts_per_token", holds, finite(used), f"{low:g} to {high:g}"))
    if gates.gradient_band is not None:
        verdicts.append(band(gates.gradient_band, measured.records))
    if gates.answer is not None:
        answer = None if measured.answer is None else " ".join(measured.answer.split())
        holds = answer is not None and " ".join(gates.answer.contains.split()) in answer
        verdicts.append(Verdict("answer", holds, answer, f'"{gates.answer.contains}" in it'))
    return tuple(verdicts)


def at_most(gate: str, value: float | None, limit: float | None, expected: str) -> Verdict:
    """Return the verdict on a loss and its limit; a loss that is not a number fails."""
    return Verdict(gate, value is not None and limit is not None and value <= limit, finite(value), expected)


def band(gate: BandGate, records: Sequence[Mapping[str, Any]]) -> Verdict:
    """Return the verdict on the spread of the first block's gradient norm over the span of the gate."""
    start = "the end of the warm-up" if gate.start is None else f"{gate.start:g} of the schedule"
    until = "the end" if gate.until_loss is None else f"a loss below {gate.until_loss:g}"
    norms = norms_in_span(records, gate.start, gate.until_loss)
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
    """Return the first block's norms in a span of the records.

    Args:
        records: Records of metrics.jsonl.
        start: The progress of the schedule (0..1) at which the span begins; None is the end of the warm-up.
        until_loss: The span ends before the first record with a loss below this.
    """
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
