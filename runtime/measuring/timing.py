"""Time a model at points of its dial, and count what it uses there.

All points take part in every round, in a new order each time, so that a machine that slows down slows them all. Every
point reads the same tokens, so that only the thresholds differ.
"""

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..dial import Thresholds
from ..execution.sequence import Sequence as Tokens
from ..execution.usage.total import Total
from ..generation.engine import Engine
from ..generation.sampling.sampler import Sampler, Sampling

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Distribution:
    """Median, 5th and 95th percentile, in the unit of the values."""

    median: float
    p5: float
    p95: float

    @classmethod
    def of(cls, values: Sequence[float] | Floats) -> "Distribution":
        """Summarise `values`."""
        low, middle, high = np.percentile(np.asarray(values), [5, 50, 95])
        return cls(float(middle), float(low), float(high))


@dataclass
class Timed:
    """The measurements of one point."""

    prefill: list[float] = field(default_factory=list)
    """Seconds of each prefill."""
    rounds: list[list[float]] = field(default_factory=list)
    """Seconds of each decoded token, by round."""
    prefill_cpu: list[float] = field(default_factory=list)
    """CPU seconds of each prefill, of all threads of the session."""
    rounds_cpu: list[list[float]] = field(default_factory=list)
    """CPU seconds of each decoded token, by round."""
    tally: Total = field(default_factory=Total)
    """Usage of the tokens that are decoded in a round; the same in every round."""

    @property
    def milliseconds(self) -> Distribution:
        """Milliseconds per decoded token, over all rounds."""
        return Distribution.of(1000 * np.array(self.rounds).ravel())

    @property
    def medians(self) -> Floats:
        """Seconds per token, the median of each round."""
        return np.asarray(np.median(np.array(self.rounds), axis=1))

    @property
    def spread(self) -> float:
        """Spread of the rounds: (largest - smallest) / median of their medians."""
        medians = self.medians
        return float((medians.max() - medians.min()) / np.median(medians))


def time_points(
    engine: Engine,
    points: Sequence[Thresholds],
    prompt: Sequence[int],
    answer: Sequence[int],
    *,
    repeats: int,
    seed: int,
) -> list[Timed]:
    """Prefill `prompt`, then decode `answer` token by token, `repeats` times at each point.

    The time of a token includes the pass and the choice of the next token, as in generation. The chosen token is
    discarded and the given one computed next, so that every point and every round does the same work on the same text.
    """
    return time_engines([(engine, point) for point in points], prompt, answer, repeats=repeats, seed=seed)


def time_engines(
    points: Sequence[tuple[Engine, Thresholds]],
    prompt: Sequence[int],
    answer: Sequence[int],
    *,
    repeats: int,
    seed: int,
) -> list[Timed]:
    """Do the same for points of several models, all of which have these tokens and take part in every round."""
    results = [Timed() for _ in points]
    order = np.random.default_rng(seed)
    # One for the points of a model, so that every round after the first finds its memory in place.
    room = len(prompt) + len(answer)
    sequences = {engine: engine.session.sequence(point, room) for engine, point in points}
    # The first round warms up, and counts usage, which is the same in every round.
    for (engine, point), result in zip(points, results, strict=True):
        _round(engine, sequences[engine], point, prompt, answer, seed, Timed(), result)
    with no_collection():
        for _ in range(repeats):
            for index in order.permutation(len(points)):
                engine, point = points[index]
                _round(engine, sequences[engine], point, prompt, answer, seed, results[index], None)
    return results


def _round(
    engine: Engine, sequence: Tokens, point: Thresholds, prompt: Sequence[int], answer: Sequence[int], seed: int,
    timed: Timed, counted: Timed | None,
) -> None:  # fmt: skip
    sequence.rewind(0)
    sequence.thresholds = point
    sampler = Sampler(Sampling(seed=seed), engine.manifest.model.tokenizer_size, list(prompt))
    # The clock of this thread alone, unless others compute too.
    cpu_time = time.thread_time if engine.session.threads == 1 else time.process_time
    cpu, begin = cpu_time(), time.perf_counter()
    step = sequence.prefill(prompt)
    timed.prefill.append(time.perf_counter() - begin)
    timed.prefill_cpu.append(cpu_time() - cpu)
    seconds, cpu_seconds = [], []
    for token in answer:
        cpu, begin = cpu_time(), time.perf_counter()
        step = sequence.step(token)
        sampler.choose(step.logits[-1])
        seconds.append(time.perf_counter() - begin)
        cpu_seconds.append(cpu_time() - cpu)
        if counted is not None:
            counted.tally += engine.session.meter.total([step.routes])
    timed.rounds.append(seconds)
    timed.rounds_cpu.append(cpu_seconds)


@contextmanager
def no_collection() -> Iterator[None]:
    """Suspend garbage collection during a measurement."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
