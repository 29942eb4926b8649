"""Where a run's measurements go besides metrics.jsonl: TensorBoard, wandb, mlflow or trackio, each if asked.

A tracker is a mirror: what it does wrong is said once, and the run goes on without it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...contract.errors import UserError
from ...contract.files import write_whole

KEPT = "trackers.json"
"""In the run's folder: the id by which each tracker knows the run, so that a resumed one goes on there."""
PROJECT = "adaptive"
"""What the runs of this program stand under, unless the tracker's own variable says otherwise."""
PACKAGES = {"tensorboard": "train", "wandb": "trackers", "mlflow": "trackers", "trackio": "trackers"}
"""Tracker -> the extra that installs it."""


@dataclass(frozen=True)
class Start:
    """What a tracker is told when a session of a run begins."""

    folder: Path
    name: str
    config: Mapping[str, Any]
    """Every setting, by its dotted key."""
    step: int
    """The step it goes on from."""
    id: str | None = None
    """By which the tracker knows the run from an earlier session."""


class Tracker(Protocol):
    """One mirror of the run's measurements."""

    id: str | None

    def log(self, values: Mapping[str, float], step: int) -> None:
        """What was measured at a step."""

    def close(self) -> None:
        """The session is over; another may come."""


class TensorBoard:
    """Event files in the run's folder; `tensorboard --logdir runs` shows them."""

    id: str | None = None

    def __init__(self, module: Any, start: Start) -> None:
        self._writer = module.SummaryWriter(str(start.folder / "tensorboard"), purge_step=start.step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases. Offline, in the run's folder, unless WANDB_MODE or WANDB_API_KEY is set: nothing leaves the
    machine and nobody is asked to log in behind one's back; `wandb sync` sends it later.

    A resumed run says again what was measured since its checkpoint; wandb keeps what it heard first, and the two are
    equal.
    """

    def __init__(self, module: Any, start: Start) -> None:
        decided = "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ
        self._run = module.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=start.name,
            id=start.id or secrets.token_hex(4),
            resume="allow",
            dir=str(start.folder),
            config=dict(start.config),
            mode=None if decided else "offline",
        )
        self.id: str | None = str(self._run.id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """MLflow, at MLFLOW_TRACKING_URI; where that is not set, in MLflow's own place, mlflow.db in the current folder,
    which `mlflow ui` shows.
    """

    MOST_PARAMS = 100  # of one call
    LONGEST = 500  # letters of a parameter that every release takes

    def __init__(self, module: Any, start: Start) -> None:
        self._entities = importlib.import_module("mlflow.entities")
        self._client = module.MlflowClient()
        if start.id is not None:
            self._client.update_run(start.id, status="RUNNING")
            self.id: str | None = start.id
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        self.id = str(self._client.create_run(experiment, run_name=start.name).info.run_id)
        params = [self._entities.Param(key, str(value)[: self.LONGEST]) for key, value in start.config.items()]
        for first in range(0, len(params), self.MOST_PARAMS):
            self._client.log_batch(self.id, params=params[first : first + self.MOST_PARAMS])

    def log(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(key, value, now, step) for key, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self.id)


class Trackio:
    """Trackio, in its own folder on this machine; `trackio show` shows it."""

    def __init__(self, module: Any, start: Start) -> None:
        name = start.id or f"{start.name}-{secrets.token_hex(2)}"  # it knows runs by their names alone
        self._run = module.init(project=PROJECT, name=name, config=dict(start.config), resume="allow")
        self.id: str | None = name

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


KINDS: Mapping[str, tuple[str, Callable[[Any, Start], Tracker]]] = {
    "tensorboard": ("torch.utils.tensorboard", TensorBoard),
    "wandb": ("wandb", Wandb),
    "mlflow": ("mlflow", Mlflow),
    "trackio": ("trackio", Trackio),
}


def load(names: Sequence[str]) -> dict[str, Any]:
    """Imports the libraries of the trackers, before anything else takes its time.

    Raises:
        UserError: one is not installed.
    """
    found = {}
    for name in names:
        try:
            found[name] = importlib.import_module(KINDS[name][0])
        except ModuleNotFoundError as error:
            raise UserError(
                f'the tracker {name} is asked for, but {error.name} is not installed; type: pip install "adaptive-lm['
                f'{PACKAGES[name]}]", or leave it out of the config'
            ) from None
    return found


class Trackers:
    """The trackers of a session, all under one hand; `say` hears what is wrong with one, once.

    What they print goes to stderr: stdout is for results.
    """

    def __init__(self, modules: Mapping[str, Any], start: Start, say: Callable[[str], None]) -> None:
        self._say = say
        self._open: dict[str, Tracker] = {}
        known = read_ids(start.folder)
        for name, module in modules.items():
            here = Start(start.folder, start.name, start.config, start.step, known.get(name))
            with self._guarded(name):
                self._open[name] = KINDS[name][1](module, here)
        ids = {name: tracker.id for name, tracker in self._open.items() if tracker.id is not None}
        if ids:
            write_whole(start.folder / KEPT, json.dumps({**known, **ids}, indent=1) + "\n")

    def log(self, record: Mapping[str, Any]) -> None:
        """The numbers of a record of metrics.jsonl."""
        step = record["step"]
        values = {
            key: float(value)
            for key, value in record.items()
            if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.log(values, step)

    def close(self) -> None:
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.close()
        self._open = {}

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """A tracker that fails in any way is named and dropped."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except Exception as error:  # a tracker can fail in any way: network, disk, its own mistakes
            self._open.pop(name, None)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._say(f"warning: the tracker {name} failed ({reason}); the run goes on without it")


def read_ids(folder: Path) -> dict[str, str]:
    """Tracker -> id, as kept in the run's folder; what cannot be read is none."""
    try:
        content = json.loads((folder / KEPT).read_bytes())
        return {str(name): str(value) for name, value in content.items()}
    except (OSError, ValueError, AttributeError):
        return {}
