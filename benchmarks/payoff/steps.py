"""How long a training step of each entrant takes: one process each, which take turns.

Half an hour is counted in steps. The steps that fit into it follow from CPU time of one thread, measured here once for
all entrants in alternation. A training then has the same number of steps on a loaded machine, beside others, or stopped
and resumed, and ends with the same weights.

The parent starts `python -m payoff.steps RECIPE FOLDER` for each entrant. A child compiles, takes some steps until the
controllers hold their averages, and then takes as many steps as each line on its standard input says.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

SETTLING = 10
"""Steps before the first that is timed: compilation, and controllers that find their averages."""
TURN = 2
"""Steps of a turn: two, since exits learn in turn and each step has another one."""
SCHEDULED = 1_000
"""Steps of the schedule that the timed steps begin; their number does not change the time of one."""


class Cost(NamedTuple):
    """The cost of a training step."""

    seconds: float
    """Median CPU time of a step."""
    low: float
    """5th percentile of it."""
    high: float
    """95th percentile of it."""
    experts: float
    """Experts per token in the last step."""


def measure(recipes: Mapping[str, Path], folder: Path, rounds: int) -> dict[str, Cost]:
    """Return the cost of a step for each recipe, measured in alternation over `rounds` turns.

    Raises:
        RuntimeError: A child failed; the message names its log.
    """
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    children: dict[str, _Child] = {}
    try:
        for name, recipe in recipes.items():
            print(f"  {name}: compiling, and {SETTLING} steps that are not timed", file=sys.stderr, flush=True)
            children[name] = _Child(recipe, folder / recipe.stem)
            children[name].take(SETTLING)
        seconds: dict[str, list[float]] = {name: [] for name in recipes}
        experts = dict.fromkeys(recipes, 1.0)
        names = list(recipes)
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                turn = children[name].take(TURN)
                seconds[name].append(turn["seconds"] / TURN)
                experts[name] = turn["experts"]
    finally:
        for child in children.values():
            child.close()
    costs = {}
    for name, values in seconds.items():
        low, middle, high = map(float, np.percentile(values, [5, 50, 95]))
        costs[name] = Cost(middle, low, high, experts[name])
    return costs


class _Child:
    """A process that trains one entrant, step by step on request."""

    def __init__(self, recipe: Path, folder: Path) -> None:
        self.log = folder.with_suffix(".log")
        self._log: IO[str] = self.log.open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "payoff.steps", str(recipe), str(folder)], cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip

    def take(self, steps: int) -> dict[str, float]:
        """Take steps; return their CPU time and the experts per token."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            tail = self.log.read_text(encoding="utf-8")[-2000:]
            raise RuntimeError(f"a training step failed; its output is in {self.log} and ends with:\n{tail}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has failed, and the error is on its way
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def serve(recipe: Path, folder: Path) -> None:
    """Build the trainer of a recipe, and take as many steps as each line of standard input says."""
    from adaptive_lm.train.config.run_config import make_config, read_recipe
    from adaptive_lm.train.run.folder import Run
    from adaptive_lm.train.system.progress import Progress
    from adaptive_lm.train.system.signals import StopSignals
    from adaptive_lm.train.training import Training

    end: dict[str, Any] = {"trainer": {"steps": SCHEDULED, "log_every": SCHEDULED}}
    config = make_config(read_recipe(str(recipe)), [end])
    with StopSignals() as signals, Run(folder) as run:
        training = Training(run, signals, Progress())
        loop = training.build(training.prepare(config, None), None, {})
        for line in sys.stdin:
            began = time.process_time()
            for _ in range(int(line)):
                done = loop.counters.step / SCHEDULED
                loop.shape = loop.lengths.shape(loop.counters, done)
                batch = loop.lengths.batch_size(loop.counters, done)
                loop.optimizers.set_rate(loop.clock.rate(done, loop.shape, batch))
                loop.curriculum.apply(loop.counters.step, done, loop.update.monitor.losses())
                result = loop.update.step(loop.shape)
                loop.counters.step += 1
            seconds = time.process_time() - began
            experts = result.parts.get("experts_per_token", 1.0)
            print(json.dumps({"seconds": seconds, "experts": experts}), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]))
