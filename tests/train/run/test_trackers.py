"""Trackers: the records they get, the continuation of a resumed run, and failures that do not end a run.

The fakes have the names and arguments of wandb 0.31, mlflow 3.17 and trackio 0.43, each of which was run for real once.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import RunConfig
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.run.metrics import read_metrics
from adaptive_lm.train.run.trackers import IDS, read_ids
from adaptive_lm.train.system.progress import Progress

Make = Callable[..., RunConfig]
NAMES = ("wandb", "mlflow", "trackio")


class Store:
    """The calls of all fakes, by the id of the run."""

    def __init__(self) -> None:
        self.values: dict[str, dict[int, dict[str, float]]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self.asked: list[dict[str, Any]] = []
        self.closed: list[str] = []
        self.fails: set[str] = set()

    def add(self, id: str, values: dict[str, Any], step: int, name: str) -> None:
        if name in self.fails:
            raise ConnectionError("no route to host\nand a stack trace")
        assert all(type(value) is float for value in values.values())
        self.values.setdefault(id, {}).setdefault(step, {}).update(values)


class Logged:
    """A run of wandb or trackio."""

    def __init__(self, store: Store, name: str, id: str) -> None:
        self.id, self._store, self._name = id, store, name
        print("* Tracker begins")  # as trackio does, on stdout

    def log(self, data: dict[str, Any], step: int | None = None) -> None:
        assert step is not None
        self._store.add(self.id, data, step, self._name)

    def finish(self) -> None:
        self._store.closed.append(self.id)


def fake_wandb(store: Store) -> Any:
    def init(*, project: str, dir: str, id: str, name: str, config: dict[str, Any], mode: str | None,
             resume: str) -> Logged:  # fmt: skip
        store.asked.append({"mode": mode, "project": project, "resume": resume, "id": id})
        store.configs[id] = config
        return Logged(store, "wandb", id)

    return SimpleNamespace(init=init)


def fake_trackio(store: Store) -> Any:
    def init(project: str, name: str | None = None, config: dict[str, Any] | None = None,
             resume: str = "never") -> Logged:  # fmt: skip
        store.asked.append({"project": project, "resume": resume, "id": name})
        store.configs[str(name)] = config or {}
        return Logged(store, "trackio", str(name))

    return SimpleNamespace(init=init)


class MlflowClient:
    """The calls of mlflow.MlflowClient that are used."""

    store: Store

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="7") if name in self.store.configs else None

    def create_experiment(self, name: str) -> str:
        self.store.configs[name] = {}
        return "7"

    def create_run(self, experiment_id: str, run_name: str | None = None) -> Any:
        assert experiment_id == "7"
        new = f"mlflow-{run_name}-{len(self.store.asked)}"
        self.store.asked.append({"id": new})
        self.store.configs[new] = {}
        return SimpleNamespace(info=SimpleNamespace(run_id=new))

    def update_run(self, run_id: str, status: str | None = None) -> None:
        assert run_id in self.store.configs
        self.store.asked.append({"id": run_id, "status": status})

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        assert len(params) <= 100
        self.store.configs[run_id] |= {one.key: one.value for one in params}
        for one in metrics:
            self.store.add(run_id, {one.key: one.value}, one.step, "mlflow")

    def set_terminated(self, run_id: str) -> None:
        self.store.closed.append(run_id)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """Put the fakes in place of the packages."""
    found = Store()
    client = type("MlflowClient", (MlflowClient,), {"store": found})
    entities = SimpleNamespace(
        Metric=lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step),
        Param=lambda key, value: SimpleNamespace(key=key, value=value),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(found))
    monkeypatch.setitem(sys.modules, "trackio", fake_trackio(found))
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=client))
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_gets_config_and_metrics_and_a_resumed_run_goes_on_in_it(
    name: str, store: Store, tiny_config: Make, folder: Path, display: Progress, capsys: pytest.CaptureFixture[str]
) -> None:
    run = named_run("a")
    training.begin(tiny_config(trainer={"trackers": [name]}), run, display=display, stop_at=7)
    ids = read_ids(run.path)
    assert list(ids) == [name]
    training.resume(run, display=display)
    assert read_ids(run.path) == ids
    own = ids[name]
    assert {one["id"] for one in store.asked} == {own}
    assert len(store.asked) == len(store.closed) == 2
    records = {record["step"]: record for record in read_metrics(run.path / "metrics.jsonl")}
    assert sorted(store.values[own]) == sorted(records) == list(range(1, 13))
    for step, record in records.items():
        for key in ("loss", "val_loss", "lr", "experts_per_token"):
            assert store.values[own][step].get(key) == record[key]
    assert str(store.configs[own]["model.dim"]) == "32"
    assert len(store.configs[own]) > 100, "all of it, in parts where a tracker takes a hundred in one call"
    assert capsys.readouterr().out == "", "stdout is for results"


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_fails_is_named_once_and_the_run_goes_on(
    name: str, store: Store, tiny_config: Make, folder: Path, display: Progress, story: io.StringIO
) -> None:
    store.fails = {name}
    outcome = training.begin(tiny_config(trainer={"trackers": list(NAMES)}), named_run("a"), display=display)
    assert outcome.complete
    assert outcome.exit_code == 0
    warned = [line for line in story.getvalue().splitlines() if "the tracker" in line]
    assert warned == [f"warning: the tracker {name} failed (no route to host); the run continues without it"]
    others = [own for other, own in read_ids(outcome.run.path).items() if other != name]
    assert all(len(store.values[own]) == 12 for own in others)


def test_a_tracker_that_does_not_begin_is_no_reason_not_to_train(
    store: Store, tiny_config: Make, folder: Path, display: Progress, story: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def init(**_: Any) -> None:
        raise RuntimeError("not logged in")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    outcome = training.begin(tiny_config(trainer={"trackers": ["wandb"]}), named_run("a"), display=display)
    assert outcome.complete
    assert "the tracker wandb failed (not logged in)" in story.getvalue()
    assert not (outcome.run.path / IDS).exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_package_that_is_not_there_is_named_before_anything_is_trained(
    name: str, tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"{name} is not installed; type: pip install \"adaptive-lm\[trackers\]\""):
        training.begin(tiny_config(trainer={"trackers": [name]}), named_run("a"), display=display)
    assert not (folder / "runs/a/metrics.jsonl").exists()


@pytest.mark.parametrize(("variable", "mode"), [(None, "offline"), ("WANDB_MODE", None), ("WANDB_API_KEY", None)])
def test_wandb_sends_nothing_unless_it_is_told_to(
    variable: str | None, mode: str | None, store: Store, tiny_config: Make, folder: Path, display: Progress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if variable:
        monkeypatch.setenv(variable, "online")
    training.begin(tiny_config(trainer={"trackers": ["wandb"]}), named_run("a"), display=display, stop_at=1)
    assert store.asked[0]["mode"] == mode
    assert store.asked[0]["resume"] == "allow"


def test_a_new_run_in_the_place_of_an_old_one_is_another_run(
    store: Store, tiny_config: Make, folder: Path, display: Progress
) -> None:
    for _ in range(2):
        training.begin(
            tiny_config(trainer={"trackers": list(NAMES)}), named_run("a"), overwrite=True, display=display, stop_at=1
        )
    assert len({one["id"] for one in store.asked}) == 6


def test_trackers_may_be_turned_on_and_off_when_a_run_is_resumed(
    store: Store, tiny_config: Make, folder: Path, display: Progress
) -> None:
    run = named_run("a")
    training.begin(tiny_config(trainer={"trackers": ["wandb"]}), run, display=display, stop_at=3)
    training.resume(run, [{"trainer": {"trackers": ["trackio"]}}], display=display, stop_at=6)
    training.resume(run, [{"trainer": {"trackers": ["wandb", "trackio"]}}], display=display)
    ids = read_ids(run.path)
    assert sorted(store.values[ids["wandb"]]) == [1, 2, 3, *range(7, 13)]
    assert sorted(store.values[ids["trackio"]]) == list(range(4, 13))
