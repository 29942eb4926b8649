"""Time a model at points of its dial, and count what it uses there.

All points take part in every round, in a new order each time, so that a machine that slows down slows them all. Every
point reads the same tokens, so that only the thresholds differ.
"""

import gc
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from ..dial import Thresholds
from ..execution.sequence import Sequence as Tokens
from ..execution.usage.routes import Routes
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
class Tally:
    """Usage, summed over the tokens of one point; the same in every round."""

    tokens: int = 0
    layers: int = 0
    experts: int = 0
    heads: int = 0
    executed_flops: float = 0.0
    dense_flops: float = 0.0
    adaptive_flops: float = 0.0
    adaptive_dense_flops: float = 0.0
    executed_bytes: float = 0.0

    @classmethod
    def total(cls, tallies: Iterable["Tally"]) -> "Tally":
        """Return the sum of tallies."""
        each = list(tallies)
        return cls(**{one.name: sum(getattr(tally, one.name) for tally in each) for one in fields(cls)})

    def add(self, engine: Engine, routes: Routes) -> None:
        """Add the tokens of `routes`."""
        spent = engine.session.meter.spent(routes)
        every = engine.manifest.model.num_heads
        self.tokens += routes.layers_run.shape[1]
        self.layers += int(routes.layers_run.sum())
        self.experts += int(routes.selected_experts.sum())
        self.heads += int(routes.layers_run.sum() * every if (h := routes.selected_heads) is None else h.sum())
        self.executed_flops += float(spent.executed[0].sum())
        self.dense_flops += float(spent.dense[0].sum())
        self.adaptive_flops += float(spent.adaptive[0].sum())
        self.adaptive_dense_flops += float(spent.adaptive_dense[0].sum())
        self.executed_bytes += float(spent.executed[1].sum())


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
    tally: Tally = field(default_factory=Tally)

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
        _round(engine, sequences[engine], point, prompt, answer, seed, Timed(), result.tally)
    with no_collection():
        for _ in range(repeats):
            for index in order.permutation(len(points)):
                engine, point = points[index]
                _round(engine, sequences[engine], point, prompt, answer, seed, results[index], None)
    return results


def _round(
    engine: Engine, sequence: Tokens, point: Thresholds, prompt: Sequence[int], answer: Sequence[int], seed: int,
    timed: Timed, tally: Tally | None,
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
        if tally is not None:
            tally.add(engine, step.routes)
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
