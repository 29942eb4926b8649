"""Trackers of a run's measurements besides metrics.jsonl: TensorBoard, wandb, mlflow and trackio.

A tracker is a mirror: if it fails, that is logged once and the run continues without it.
"""

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

IDS = "trackers.json"
"""File in the run's folder with the id of the run in each tracker, so that a resumed run continues the same record."""
PROJECT = "adaptive"
"""Project of this program's runs, unless the tracker's own environment variable names another."""
PACKAGES = {"tensorboard": "train", "wandb": "trackers", "mlflow": "trackers", "trackio": "trackers"}
"""Tracker -> the extra that installs it."""


@dataclass(frozen=True)
class Start:
    """The arguments of a tracker when a training begins."""

    folder: Path
    name: str
    config: Mapping[str, Any]
    """Every setting, by its dotted key."""
    step: int
    """Step that the training resumes from."""
    id: str | None = None
    """Id of the run in the tracker, from an earlier training."""


class Tracker(Protocol):
    """One mirror of the run's measurements."""

    id: str | None

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log what was measured at a step."""

    def close(self) -> None:
        """End this training; another may follow."""


class TensorBoard:
    """Event files in the run's folder; `tensorboard --logdir runs` shows them."""

    id: str | None = None

    def __init__(self, module: Any, start: Start) -> None:
        self._writer = module.SummaryWriter(str(start.folder / "tensorboard"), purge_step=start.step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log what was measured at a step."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        """End this training."""
        self._writer.close()


class Wandb:
    """Weights & Biases.

    It is offline, in the run's folder, unless WANDB_MODE or WANDB_API_KEY is set: nothing leaves the machine and there
    is no login prompt; `wandb sync` sends it later.

    A resumed run logs again what was measured since its checkpoint; wandb keeps the first values, which are equal.
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
        """Log what was measured at a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """End this training."""
        self._run.finish()


class Mlflow:
    """MLflow, at MLFLOW_TRACKING_URI.

    Without that variable it writes to MLflow's own default, mlflow.db in the current folder, which `mlflow ui` shows.
    """

    MAX_PARAMS = 100  # of one call
    MAX_CHARACTERS = 500  # of a parameter, in every release

    def __init__(self, module: Any, start: Start) -> None:
        self._entities = importlib.import_module("mlflow.entities")
        self._client = module.MlflowClient()
        if start.id is not None:
            self._client.update_run(start.id, status="RUNNING")
            self.id: str | None = start.id
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        existing = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if existing is None else existing.experiment_id
        self.id = str(self._client.create_run(experiment, run_name=start.name).info.run_id)
        params = [self._entities.Param(key, str(value)[: self.MAX_CHARACTERS]) for key, value in start.config.items()]
        for first in range(0, len(params), self.MAX_PARAMS):
            self._client.log_batch(self.id, params=params[first : first + self.MAX_PARAMS])

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log what was measured at a step."""
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(key, value, now, step) for key, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self) -> None:
        """End this training."""
        self._client.set_terminated(self.id)


class Trackio:
    """Trackio, in its own folder on this machine; `trackio show` shows it."""

    def __init__(self, module: Any, start: Start) -> None:
        name = start.id or f"{start.name}-{secrets.token_hex(2)}"  # it identifies runs by their names alone
        self._run = module.init(project=PROJECT, name=name, config=dict(start.config), resume="allow")
        self.id: str | None = name

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log what was measured at a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """End this training."""
        self._run.finish()


KINDS: Mapping[str, tuple[str, Callable[[Any, Start], Tracker]]] = {
    "tensorboard": ("torch.utils.tensorboard", TensorBoard),
    "wandb": ("wandb", Wandb),
    "mlflow": ("mlflow", Mlflow),
    "trackio": ("trackio", Trackio),
}


def load(names: Sequence[str]) -> dict[str, Any]:
    """Import the libraries of the trackers, before anything that takes long.

    Raises:
        UserError: a library is not installed.
    """
    modules = {}
    for name in names:
        try:
            modules[name] = importlib.import_module(KINDS[name][0])
        except ModuleNotFoundError as error:
            raise UserError(
                f'trainer.trackers names {name}, but {error.name} is not installed; type: pip install "adaptive-lm['
                f'{PACKAGES[name]}]", or leave it out of the config'
            ) from None
    return modules


class Trackers:
    """All trackers of a training; `log` gets one warning for each that fails.

    What they print goes to stderr: stdout is for results.
    """

    def __init__(self, modules: Mapping[str, Any], start: Start, log: Callable[[str], None]) -> None:
        self._log = log
        self._open: dict[str, Tracker] = {}
        stored = read_ids(start.folder)
        for name, module in modules.items():
            here = Start(start.folder, start.name, start.config, start.step, stored.get(name))
            with self._guarded(name):
                self._open[name] = KINDS[name][1](module, here)
        ids = {name: tracker.id for name, tracker in self._open.items() if tracker.id is not None}
        if ids:
            write_whole(start.folder / IDS, json.dumps({**stored, **ids}, indent=1) + "\n")

    def log(self, record: Mapping[str, Any]) -> None:
        """Log the numbers of a record of metrics.jsonl."""
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
        """Close all trackers."""
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.close()
        self._open = {}

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Drop a tracker that fails in any way, with a warning."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except Exception as error:  # a tracker can fail in any way: network, disk, its own mistakes
            self._open.pop(name, None)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._log(f"warning: the tracker {name} failed ({reason}); the run continues without it")


def read_ids(folder: Path) -> dict[str, str]:
    """Read tracker -> id from the run's folder; a file that cannot be read is empty."""
    try:
        content = json.loads((folder / IDS).read_bytes())
        return {str(name): str(value) for name, value in content.items()}
    except (OSError, ValueError, AttributeError):
        return {}
