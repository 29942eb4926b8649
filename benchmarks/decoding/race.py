"""Races of the decode benchmark: participants that are open in one process and take turns.

Each computes a few tokens, in an order that changes from round to round. The first token of a turn is not timed, since
the others have emptied the caches. A round counts with the median of its tokens, and every ratio is taken within a
round. The rate at which memory is read takes its turn as well.

Two clocks: CPU time and wall clock. With one thread the CPU time is that of the calling thread, which computes
everything and which neighbours on the machine disturb less; with more it is that of the process, in which threads that
spin while they wait count too.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from adaptive_lm.runtime.measuring.memory_bound import LARGEST, REDUCTIONS, SMALLEST
from adaptive_lm.runtime.measuring.timing import no_collection
from adaptive_lm.train.model import Transformer
from decoding.entrants import Entrant, Setting
from decoding.participants import Participant
from models.files import Files
from models.random_weights import DEFAULT_EXPERTS, VOCABULARY, Precision, for_torch, thresholds_of

FP32_TOLERANCE = 0.01
"""Largest relative difference of float32 logits from torch's at which two models count as the same. llama.cpp keeps
keys and values in float16, and GenAI's form weighs the experts slightly differently."""
LEAST_READ = 64 * 2**20
"""Bytes read to measure the rate once."""
BYTES_PER_WEIGHT: dict[Precision, float] = {"fp32": 4, "int8": 1.0625, "int4": 0.5625}
"""With a float16 scale for 32 weights, as in q8_0 and q4_0."""
PROMPT = 64
"""Tokens of the prompt where the context is not what is measured."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Spec:
    """What to measure in a cell."""

    work: str
    model: str
    precision: Precision
    threads: int
    core: int | None
    """Core to pin the process to."""
    contexts: tuple[int, ...]
    prefills: tuple[int, ...]
    batches: tuple[int, ...]
    rounds: int
    turn: int
    """Timed tokens of a participant in a round."""

    @property
    def experts(self) -> int:
        """Experts per token where their number is not what is measured."""
        return min(DEFAULT_EXPERTS, self.files.size.experts)

    @property
    def files(self) -> Files:
        """The files of the model."""
        return Files(Path(self.work), self.model)


class Lane(NamedTuple):
    """An entrant in a race."""

    label: str
    entrant: Entrant
    setting: Setting


class Memory:
    """A buffer as large as the weights, to measure how fast they could be read.

    So a model that fits into the cache is compared with the cache. The reductions are those of `adaptive bench`; with
    one thread the clock is that of the participants, the CPU time of this thread.
    """

    def __init__(self, size: int, threads: int) -> None:
        self.size = min(max(size, SMALLEST), LARGEST)
        self.parts = np.array_split(np.ones(self.size // 8, np.int64), threads)
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self.passes = max(1, LEAST_READ // self.size)

    def rate(self) -> float:
        """Return bytes per second, of the faster of two reductions."""
        best = 0.0
        for reduce in REDUCTIONS:
            self._read(reduce, 1)  # brings it into the cache, where it fits
            clock = time.perf_counter if self.pool else time.thread_time
            begin = clock()
            self._read(reduce, self.passes)
            best = max(best, self.passes * self.size / (clock() - begin))
        return best

    def _read(self, reduce: Callable[[NDArray[np.int64]], Any], passes: int) -> None:
        for _ in range(passes):
            if self.pool is None:
                reduce(self.parts[0])
            else:
                list(self.pool.map(reduce, self.parts))


def tokens(count: int) -> list[int]:
    """Return the same random tokens in every run."""
    ids: list[int] = np.random.default_rng(1).integers(0, VOCABULARY, count).tolist()
    return ids


class Race:
    """Lanes that are open at the same time, and what they measured."""

    def __init__(self, spec: Spec, reference: Transformer) -> None:
        self.spec, self.reference = spec, reference
        self.memory = Memory(int(spec.files.size.weights() * BYTES_PER_WEIGHT[spec.precision]), spec.threads)

    def decode(self, lanes: Sequence[Lane], context: int) -> dict[str, Row]:
        """Time single tokens around a context, the same in all lanes."""
        spec = self.spec
        total = (spec.turn + 1) * (spec.rounds + 1)
        ids = tokens(max(context - total // 2, 1) + total)
        prompt, answer = ids[:-total], ids[-total:]
        rows: dict[str, Row] = {lane.label: {"wall": [], "cpu": []} for lane in lanes}
        rates: list[float] = []
        with _open(lanes) as open_:
            for lane, participant in zip(lanes, open_, strict=True):
                participant.begin(prompt)
                rows[lane.label]["difference"] = self._difference(lane, participant, prompt)
            with no_collection():
                for number in range(spec.rounds + 1):  # the first one warms up
                    turn = answer[number * (spec.turn + 1) : (number + 1) * (spec.turn + 1)]
                    for index in _order(len(lanes), number):
                        wall, cpu = self._turn(open_[index], turn)
                        if number:
                            rows[lanes[index].label]["wall"].append(wall)
                            rows[lanes[index].label]["cpu"].append(cpu)
                    rate = self.memory.rate()
                    if number:
                        rates.append(rate)
            for lane, participant in zip(lanes, open_, strict=True):
                rows[lane.label]["bytes"] = lane.entrant.bytes(lane.setting, participant, len(prompt) + total)
                rows[lane.label]["rates"] = rates
        return rows

    def _turn(self, participant: Participant, turn: Sequence[int]) -> tuple[float, float]:
        clock = _cpu_clock(self.spec.threads)
        walls, cpus = [], []
        for token in turn:
            cpu, wall = clock(), time.perf_counter()
            participant.step(token)
            walls.append(time.perf_counter() - wall)
            cpus.append(clock() - cpu)
        return float(np.median(walls[1:])), float(np.median(cpus[1:]))

    def prefill(self, lanes: Sequence[Lane], count: int) -> dict[str, Row]:
        """Time the reading of a prompt of `count` tokens."""
        clock = _cpu_clock(self.spec.threads)
        rows: dict[str, Row] = {lane.label: {"wall": [], "cpu": []} for lane in lanes}
        prompt = tokens(count)
        with _open(lanes) as open_, no_collection():
            for number in range(max(3, self.spec.rounds // 2) + 1):
                for index in _order(len(lanes), number):
                    cpu, wall = clock(), time.perf_counter()
                    open_[index].begin(prompt)
                    took = time.perf_counter() - wall, clock() - cpu
                    if number:
                        rows[lanes[index].label]["wall"].append(took[0])
                        rows[lanes[index].label]["cpu"].append(took[1])
        return rows

    @torch.no_grad()
    def _difference(self, lane: Lane, participant: Participant, prompt: Sequence[int]) -> float | None:
        """Return how far the logits are from torch's in float32: root mean square over their deviation."""
        if lane.setting.skipped is not None or lane.setting.batch > 1 or len(prompt) > 2 * PROMPT:
            return None  # another model, another token, or too long a prompt for a check in every cell
        thresholds = for_torch(thresholds_of(self.spec.files.size, lane.setting.experts))
        expected = self.reference(torch.tensor([list(prompt)]), thresholds).logits[0, -1].numpy()
        difference = float((participant.logits() - expected).std() / expected.std())
        if self.spec.precision == "fp32" and not difference <= FP32_TOLERANCE:
            raise RuntimeError(
                f"{lane.label} of {self.spec.model} in fp32 differs from torch by {difference:.1e} of the deviation of "
                f"the logits, expected at most {FP32_TOLERANCE}: it does not compute the same model"
            )
        return difference


def _cpu_clock(threads: int) -> Callable[[], float]:
    return time.thread_time if threads == 1 else time.process_time


def _order(count: int, number: int) -> list[int]:
    return [(number + index) % count for index in range(count)]


@contextmanager
def _open(lanes: Sequence[Lane]) -> Iterator[list[Participant]]:
    participants: list[Participant] = []
    try:
        participants.extend(lane.entrant.open(lane.setting) for lane in lanes)
        yield participants
    finally:
        for participant in participants:
            participant.close()
        participants.clear()
        gc.collect()
