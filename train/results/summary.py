"""What became of runs: one summary each, read from their folders without opening a weight."""

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
from ..run.best import Score, read_best
from ..run.checkpoint_names import COMPLETE, list_checkpoints
from ..run.differences import flatten
from ..run.folder import NAME_RULE, RUNS, named_run
from ..run.metrics import read_metrics
from ..system.yaml_values import load_yaml
from .verdict import Report, read_report

State = Literal["complete", "training", "stopped", "no checkpoint"]


@dataclass(frozen=True)
class Summary:
    """A run in a line. What was not measured is None; `usage` holds the averages of its last record."""

    name: str
    state: State
    step: int
    steps: int | None
    loss: float | None
    """Cross-entropy of the last steps that were logged, their median: one step alone says little."""
    val_loss: float | None
    """The last measured."""
    usage: dict[str, float]
    tokens_per_second: float | None
    seconds: float | None
    """Of training, all sessions together: what the run cost."""
    skipped: int
    """Steps that were not taken."""
    tokens_digest: str | None
    """Of all tokens that the newest checkpoint was trained on, in their order."""
    alarms: int
    """Raised by the monitor, and not what it did about them."""
    best_checkpoint: Score | None
    """That of the least held-out loss."""
    parent: str | None
    """The run that this one is to better."""
    gated: bool
    """Whether anything must hold at its end."""
    report: Report | None
    """What became of that, once it was looked at."""
    config: dict[str, Any] = field(repr=False)
    """Every setting, by its dotted key."""

    @property
    def holds(self) -> bool:
        """Whether the run is complete and no gate of it failed."""
        return self.state == "complete" and (not self.gated or (self.report is not None and self.report.passed))

    def figures(self) -> dict[str, Any]:
        """The outcome, without the config."""
        figures = asdict(self)
        del figures["config"], figures["gated"]
        report = figures.pop("report")
        gates = {"passed": self.report.passed, "verdicts": report["verdicts"]} if self.report else None
        return {**figures, **figures.pop("usage"), "gates": gates}


LAST = 10
"""Records that the loss of a summary is the median of."""


def summary(path: Path) -> Summary:
    """Reads the run in the folder `path`.

    Raises:
        UserError: it is no folder of a run.
    """
    try:
        sections = load_yaml((path / CONFIG).read_bytes(), written=True)
        config = flatten(sections)
        gated = GatesConfig.model_validate(sections.get("gates", {})).asked
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no run: its config.yaml cannot be read; see adaptive runs") from error
    records = [record for record in read_metrics(path / "metrics.jsonl") if not record.get("skipped")]
    last: Mapping[str, Any] = records[-1] if records else {}
    state = newest_state(path)
    speeds = [record["tokens_per_second"] for record in records if record.get("tokens_per_second") is not None]
    scored = [record["val_loss"] for record in records if record.get("val_loss") is not None]
    parent = config.get("parent")
    names = ("experts_per_token", "heads_per_token", "layers_per_token", "window")
    return Summary(
        name=path.name,
        state=state_of(path, state),
        step=int(state.get("step", last.get("step", 0))),
        steps=config.get("trainer.steps"),
        loss=recent_loss(records),
        val_loss=scored[-1] if scored else None,
        usage={name: float(last[name]) for name in names if last.get(name) is not None},
        tokens_per_second=median(speeds) if speeds else None,
        seconds=last.get("seconds"),
        skipped=int(state.get("bad_steps", 0)),
        tokens_digest=state.get("tokens_digest") or None,
        alarms=sum(len(record.get("alarms", ())) for record in records),
        best_checkpoint=read_best(path),
        parent=parent if isinstance(parent, str) and NAME_RULE.fullmatch(parent) else None,
        gated=gated,
        report=read_report(path),
        config=config,
    )


def recent_loss(records: Sequence[Mapping[str, Any]]) -> float | None:
    """The median of the last that were logged; of steps that were skipped, the loss does not count."""
    losses = [record["loss"] for record in records if not record.get("skipped")][-LAST:]
    losses = [loss for loss in losses if loss is not None]
    return median(losses) if losses else None


def newest_state(path: Path) -> dict[str, Any]:
    """What the newest checkpoint that was written whole says of itself, {} without one; digests are not compared."""
    for checkpoint in reversed(list_checkpoints(path / "checkpoints")):
        try:
            if (checkpoint / COMPLETE).exists():
                return dict(json.loads((checkpoint / "state.json").read_bytes()))
        except (OSError, ValueError):
            continue
    return {}


def state_of(path: Path, state: Mapping[str, Any]) -> State:
    if named_run(path.name, path.parent).is_held():
        return "training"
    if not state:
        return "no checkpoint"
    return "complete" if state.get("complete") else "stopped"


def all_runs(runs: Path = RUNS) -> list[Summary]:
    """Every run, the one trained last at the end; folders that are no runs are left out."""
    found = []
    for config in sorted(runs.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime):
        try:
            found.append(summary(config.parent))
        except UserError:
            continue
    return found


def changed(summaries: Iterable[Summary]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs: dotted key -> the value of each, None where it has none."""
    configs = [each.config for each in summaries]
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = {key: [config.get(key) for config in configs] for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}
