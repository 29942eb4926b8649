"""Summaries of runs, read from their folders without opening a weight."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from ...contract.errors import UserError
from ...contract.file_names import CONFIG
from ..config.gates import GatesConfig
from ..loop.divergence import divergence
from ..run.checkpoints.best import Score, read_best
from ..run.checkpoints.names import COMPLETE, list_checkpoints
from ..run.differences import flatten
from ..run.folder import NAME_RULE, RUNS, named_run
from ..run.metrics import read_metrics
from ..system.yaml_values import load_yaml
from .verdict import Report, read_report

State = Literal["complete", "diverged", "training", "stopped", "no checkpoint"]
"""`diverged` is at its end, and its loss is not finite; `no checkpoint` died before its first."""


@dataclass(frozen=True)
class Summary:
    """A run in a line. What was not measured is None; `usage` has the averages of its last record."""

    name: str
    state: State
    step: int
    steps: int | None
    loss: float | None
    """The median cross-entropy of the last logged steps: that of a single step varies too much."""
    val_loss: float | None
    """The last measured."""
    usage: dict[str, float]
    tasks: dict[str, dict[str, float]]
    """The figures of each task, the last that were measured, by their names in metrics.jsonl; empty without tasks."""
    tokens_per_second: float | None
    seconds: float | None
    """Seconds of all its trainings together: what the run cost."""
    skipped: int
    """The number of steps that were skipped."""
    tokens_digest: str | None
    """The digest of all tokens that the newest checkpoint was trained on, in their order."""
    alarms: int
    """The number of alarms that the monitor raised."""
    best_checkpoint: Score | None
    """The checkpoint with the least held-out loss."""
    parent: str | None
    """The run that this one is compared with."""
    origin: str | None
    """The run that this one went on from."""
    teacher: str | None
    """The model that it learned from."""
    gated: bool
    """Whether it has gates."""
    report: Report | None
    """The verdicts of its gates, if it was examined."""
    config: dict[str, Any] = field(repr=False)
    """Every setting, by its dotted key."""

    @property
    def holds(self) -> bool:
        """Whether the run is complete and none of its gates failed."""
        return self.state == "complete" and (not self.gated or (self.report is not None and self.report.passed))

    def figures(self) -> dict[str, Any]:
        """Return the outcome, without the config."""
        figures = asdict(self)
        del figures["config"], figures["gated"]
        report = figures.pop("report")
        gates = {"passed": self.report.passed, "verdicts": report["verdicts"]} if self.report else None
        return {**figures, **figures.pop("usage"), "gates": gates}


LAST = 10
"""Number of records whose median loss is the loss of a summary."""


def summary(path: Path) -> Summary:
    """Summarise the run in the folder `path`.

    Raises:
        UserError: It is not the folder of a run.
    """
    try:
        sections = load_yaml((path / CONFIG).read_bytes(), written=True)
        config = flatten(sections)
        gated = GatesConfig.model_validate(sections.get("gates", {})).asked
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a run: its config.yaml cannot be read; see adaptive runs") from error
    every_record = read_metrics(path / "metrics.jsonl")
    records = [record for record in every_record if not record.get("skipped")]
    last: Mapping[str, Any] = records[-1] if records else {}
    state = newest_state(path)
    speeds = [record["tokens_per_second"] for record in records if record.get("tokens_per_second") is not None]
    scored = [record["val_loss"] for record in records if record.get("val_loss") is not None]
    parent, origin = config.get("parent"), config.get("origin.run")
    teacher = config.get("distillation.teacher.model")
    names = ("experts_per_token", "heads_per_token", "layers_per_token", "window")
    return Summary(
        name=path.name,
        state=state_of(path, state, every_record),
        step=int(state.get("step", last.get("step", 0))),
        steps=config.get("trainer.steps"),
        loss=recent_loss(records),
        val_loss=scored[-1] if scored else None,
        usage={name: float(last[name]) for name in names if last.get(name) is not None},
        tasks=figures_of_tasks(config, records),
        tokens_per_second=median(speeds) if speeds else None,
        seconds=last.get("seconds"),
        skipped=int(state.get("bad_steps", 0)),
        tokens_digest=state.get("tokens_digest") or None,
        alarms=sum(len(record.get("alarms", ())) for record in records),
        best_checkpoint=read_best(path),
        parent=parent if isinstance(parent, str) and NAME_RULE.fullmatch(parent) else None,
        origin=origin if isinstance(origin, str) else None,
        teacher=teacher if isinstance(teacher, str) else None,
        gated=gated,
        report=read_report(path),
        config=config,
    )


def figures_of_tasks(config: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the last figures of each task: key of metrics.jsonl without the name -> value."""
    figures: dict[str, dict[str, float]] = {}
    for task in config.get("data.tasks") or ():
        name = str(task["name"])
        figures[name] = {
            key.removesuffix(f"/{name}"): float(value)
            for record in records
            for key, value in record.items()
            if key.endswith(f"/{name}") and key.count("/") == 1 and isinstance(value, int | float)
        }
        losses = [{"loss": record[f"loss/{name}"]} for record in records if record.get(f"loss/{name}") is not None]
        loss = recent_loss(losses)
        if loss is not None:
            figures[name]["loss"] = loss
    return figures


def recent_loss(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the median loss of the last logged steps, without those that were skipped."""
    losses = [record["loss"] for record in records if not record.get("skipped")][-LAST:]
    losses = [loss for loss in losses if loss is not None]
    return median(losses) if losses else None


def newest_state(path: Path) -> dict[str, Any]:
    """Return the state of the newest complete checkpoint, {} without one; its digests are not verified."""
    for checkpoint in reversed(list_checkpoints(path / "checkpoints")):
        try:
            if (checkpoint / COMPLETE).exists():
                return dict(json.loads((checkpoint / "state.json").read_bytes()))
        except (OSError, ValueError):
            continue
    return {}


def state_of(path: Path, state: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> State:
    """Return the state of the run in the folder `path` from its newest checkpoint and its records."""
    if named_run(path.name, path.parent).is_held():
        return "training"
    if not state:
        return "no checkpoint"
    if not state.get("complete"):
        return "stopped"
    return "complete" if divergence(state, records) is None else "diverged"


def all_runs(runs: Path = RUNS) -> list[Summary]:
    """Summarise every run, the one trained last at the end; skip folders that are not runs."""
    summaries = []
    for config in sorted(runs.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime):
        try:
            summaries.append(summary(config.parent))
        except UserError:
            continue
    return summaries


def changed(summaries: Iterable[Summary]) -> dict[str, list[Any]]:
    """Return the settings that differ: dotted key -> the value in each run, None where it has none."""
    configs = [each.config for each in summaries]
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = {key: [config.get(key) for config in configs] for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}
