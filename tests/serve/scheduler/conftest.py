"""Tiny models that are served, and passes that wait until a test lets them run."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support.graphs import rich_graph
from support.graphs.tiny_graph import write_model

from adaptive_lm.runtime.execution.batch import Batch
from adaptive_lm.runtime.execution.step import Step, Work


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the tiny model as that of the run `demo`; it is not calibrated."""
    return write_model(tmp_path_factory.mktemp("served") / "runs" / "demo" / "model")


@pytest.fixture(scope="session")
def dialled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the rich model with a curve, as that of the run `dialled`."""
    folder = tmp_path_factory.mktemp("served") / "runs" / "dialled" / "model"
    return write_model(folder, rich_graph.graph(), **rich_graph.sections(), curve=rich_graph.CURVE)


class Gate:
    """Passes that wait until they are let through."""

    def __init__(self) -> None:
        self._passes = threading.Semaphore(0)
        self.open = False
        self.waiting = 0
        self.work: list[Sequence[Work]] = []
        """What each pass so far computed."""
        self.error: BaseException | None = None
        """Raised in place of the next pass."""

    def let(self, passes: int) -> None:
        for _ in range(passes):
            self._passes.release()

    def let_all(self) -> None:
        self.open = True
        self._passes.release(1000)

    def shut(self) -> None:
        self.open, self._passes = False, threading.Semaphore(0)

    def enter(self, work: Sequence[Work]) -> None:
        self.waiting += 1
        if not self.open:
            assert self._passes.acquire(timeout=20)
        self.waiting -= 1
        self.work.append(work)
        if self.error is not None:
            error, self.error = self.error, None
            raise error


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, run = Gate(), Batch.run

    def gated(self: Batch, work: Sequence[Work]) -> list[Step]:
        gate.enter(work)
        return run(self, work)

    monkeypatch.setattr(Batch, "run", gated)
    yield gate
    gate.let_all()
