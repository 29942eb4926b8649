"""The trainings of the benchmark `pays`: several side by side, one thread each, that can be stopped and resumed.

Each is `adaptive train --begin-or-resume`. A signal to the benchmark is passed on: every training finishes its step and
saves. The same command continues them. A killed one loses at most the steps since its last checkpoint.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

from adaptive_lm.train.run.checkpoints.names import list_checkpoints, step_of

POLL_SECONDS = 1.0
REPORT_SECONDS = 60.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Plan(NamedTuple):
    """One training."""

    name: str
    """The name of the run."""
    recipe: Path
    seed: int
    steps: int
    step_seconds: float
    """Measured CPU time of a step."""


class TrainingError(Exception):
    """A training failed; the message ends with its output."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the benchmark."""


def steps_of(run: Path) -> int:
    """Return the newest step of a run: that of its newest record or checkpoint."""
    newest = saved_step(run)
    path = run / "metrics.jsonl"
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        with suppress(ValueError):  # the last line may be half-written
            newest = max(newest, int(json.loads(line)["step"]))
    return newest


def is_complete(run: Path, steps: int) -> bool:
    """Return whether a run has saved its last step. Its own evaluation may be missing: the export is scored."""
    return saved_step(run) == steps


def saved_step(run: Path) -> int:
    """Return the step of the newest checkpoint; 0 without one."""
    checkpoints = list_checkpoints(run / "checkpoints")
    return step_of(checkpoints[-1]) if checkpoints else 0


def train_all(plans: Sequence[Plan], folder: Path, jobs: int, tell: Callable[[str], None]) -> None:
    """Train what is not complete, `jobs` at a time, and report progress every minute.

    Raises:
        TrainingError: A training failed; the others were stopped and can be resumed.
        Interrupted: A signal came; all were stopped and can be resumed.
    """
    waiting = [plan for plan in plans if not is_complete(folder / "runs" / plan.name, plan.steps)]
    running: dict[str, _Running] = {}
    done = len(plans) - len(waiting)
    reported = time.monotonic()
    with _signals_raise():
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    plan = waiting.pop(0)
                    running[plan.name] = _Running(plan, folder)
                    tell(f"{plan.name}: training {plan.steps} steps from step {running[plan.name].first} on")
                time.sleep(POLL_SECONDS)
                for name in [name for name, one in running.items() if one.ended()]:
                    running.pop(name).require_success()
                    done += 1
                    tell(f"{name}: trained; {done} of {len(plans)}")
                if running and time.monotonic() - reported >= REPORT_SECONDS:
                    reported = time.monotonic()
                    tell(progress(list(running.values()), waiting, jobs))
        finally:
            for one in running.values():
                one.stop()
            for one in running.values():
                one.wait()


class _Running:
    """A training in a process of its own, in a session of its own: it gets signals from us alone."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.run = plan, folder / "runs" / plan.name
        self.first, self.began = saved_step(self.run), time.monotonic()
        logs = folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.log = logs / f"{plan.name}.log"
        self._log: IO[str] = self.log.open("a", encoding="utf-8")
        command = [sys.executable, "-m", "adaptive_lm.serve", "train", str(plan.recipe), "--name", plan.name]
        command += ["--seed", str(plan.seed), "--steps", str(plan.steps), "--begin-or-resume"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        self._process = subprocess.Popen(
            command, cwd=folder, stdout=self._log, stderr=self._log, env=environment, start_new_session=True
        )

    def seconds_left(self) -> float:
        """Estimate the seconds until it ends: at its own pace once it has one, at that of an idle core before."""
        step = steps_of(self.run)
        pace = self.slowdown() or 1.0
        return (self.plan.steps - step) * self.plan.step_seconds * pace

    def slowdown(self) -> float | None:
        """Return seconds by the clock over CPU seconds on an idle core, for the steps so far; None before the first."""
        taken = (steps_of(self.run) - self.first) * self.plan.step_seconds
        return (time.monotonic() - self.began) / taken if taken > 0 else None

    def ended(self) -> bool:
        """Return whether the process has ended."""
        return self._process.poll() is not None

    def require_success(self) -> None:
        """Raise `TrainingError` unless the run is complete."""
        self._log.close()
        if self._process.returncode or not is_complete(self.run, self.plan.steps):
            tail = self.log.read_text(encoding="utf-8")[-2000:]
            raise TrainingError(f"{self.plan.name} failed; its output is in {self.log} and ends with:\n{tail}")

    def stop(self) -> None:
        """Ask it to finish its step and save."""
        if not self.ended():
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Wait until it has ended."""
        self._process.wait()
        self._log.close()


def progress(running: Sequence[_Running], waiting: Sequence[Plan], jobs: int) -> str:
    """Describe each running training with its expected end, and the expected end of all."""
    now = datetime.now().astimezone()
    parts = []
    for one in running:
        end = now + timedelta(seconds=one.seconds_left())
        parts.append(f"{one.plan.name}: step {steps_of(one.run)} of {one.plan.steps}, until {end:%H:%M}")
    paces = [pace for one in running if (pace := one.slowdown()) is not None]
    pace = sum(paces) / len(paces) if paces else 1.0
    ends = sorted(one.seconds_left() for one in running) + [0.0] * (jobs - len(running))
    for plan in waiting:
        ends.sort()
        ends[0] += plan.steps * plan.step_seconds * pace
    return "; ".join(parts) + f"; all until {now + timedelta(seconds=max(ends)):%H:%M}"


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Let the first signal raise `Interrupted`; later ones are ignored, since trainings are saving."""

    def raise_(number: int, _: object) -> NoReturn:
        for one in watched:
            signal.signal(one, signal.SIG_IGN)
        raise Interrupted(signal.Signals(number).name)

    watched = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {number: signal.signal(number, raise_) for number in watched}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
