"""One cell of the decode benchmark: a model, a precision and a number of threads, in a process of its own.

    python benchmarks/decode_cell.py SPEC.json

All participants are open in this process and take turns: each computes a few tokens, in an order that changes from round
to round. The first token of a turn is not timed, since the others have emptied the caches. A round counts with the
median of its tokens, and every ratio is taken within a round.

Two clocks: CPU time and wall clock. With one thread the CPU time is that of the calling thread, which computes
everything and which neighbours on the machine disturb less; with more it is that of the process, in which threads that
spin while they wait count too.
"""

import gc
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from decode_files import Files
from decode_models import DEFAULT_EXPERTS, VOCABULARY, Precision, Size, thresholds_of
from decode_peers import PACKAGES, GenAI, LlamaCpp, Ours, Participant, Transformers, missing, targets_of
from gguf_file import bytes_per_token

from adaptive_lm.runtime.dial import Thresholds
from adaptive_lm.runtime.measuring.machine import peak_memory
from adaptive_lm.runtime.measuring.memory_bound import read_bandwidth
from adaptive_lm.runtime.measuring.timing import no_collection
from adaptive_lm.train.model import ThresholdTensors, Transformer

FP32_TOLERANCE = 0.01
"""Largest relative difference of float32 logits from torch's at which two models count as the same; llama.cpp keeps keys
and values in float16, and the experts of GenAI's form have slightly other weights."""
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


class Setting(NamedTuple):
    """What a participant is opened for."""

    capacity: int
    """Most tokens of a sequence."""
    experts: int
    skipped: int | None = None
    """Layers to skip, of the model that has depth routers; None takes the model that has none."""
    batch: int = 1


class Entrant(NamedTuple):
    """A way to run the model."""

    name: str
    open: Callable[[Setting], Participant]
    bytes: Callable[[Setting, Participant, float], float | None]
    """Bytes of weights and cache that a token needs, given the average context; None where that is not counted."""
    most_batch: int = 1
    sets_experts: bool = False
    skips_layers: bool = False


class Lane(NamedTuple):
    """An entrant in a race."""

    label: str
    entrant: Entrant
    setting: Setting


def entrants(files: Files, precision: Precision, threads: int) -> list[Entrant]:
    """List those that have this model in this precision."""
    size, absent = files.size, missing()
    entered: list[Entrant] = []
    export = files.export(precision)
    if export is not None:
        entered += [_ours(files, export, target, precision, threads) for target in targets_of(export)]
    if "llama.cpp" not in absent:
        path = files.gguf(precision)

        def llama_bytes(setting: Setting, _: Participant, context: float) -> float:
            return bytes_per_token(path, setting.experts) + _cache_bytes(size, context, 2)

        open_llama = lambda s: LlamaCpp(path, size, s.experts, threads, s.capacity, s.batch)  # noqa: E731
        entered.append(Entrant("llama.cpp", open_llama, llama_bytes, most_batch=64, sets_experts=True))
    if "genai" not in absent and (folder := files.genai(precision)) is not None:
        entered.append(Entrant("genai", lambda s: GenAI(folder, threads, s.capacity), lambda *_: None))
    if "transformers" not in absent and precision == "fp32":

        def float_bytes(setting: Setting, _: Participant, context: float) -> float:
            return 4.0 * size.weights(setting.experts) + _cache_bytes(size, context, 4)

        hf = files.hf()
        open_hf = lambda s: Transformers(hf, s.experts if size.experts > 1 else 1, threads, s.batch)  # noqa: E731
        entered.append(Entrant("transformers", open_hf, float_bytes, most_batch=64))
    return entered


def _ours(files: Files, export: Path, target: str, precision: Precision, threads: int) -> Entrant:
    skipping = files.export(precision, skipping=True)

    def open_(setting: Setting) -> Participant:
        thresholds = thresholds_of(files.size, setting.experts, setting.skipped or 0)
        folder = export if setting.skipped is None else skipping
        assert folder is not None
        return Ours(folder, target, threads, setting.capacity, thresholds)

    def bytes_(_: Setting, participant: Participant, __: float) -> float:
        assert isinstance(participant, Ours)
        return participant.bytes_per_token()

    return Entrant(target, open_, bytes_, sets_experts=True, skips_layers=skipping is not None)


def _cache_bytes(size: Size, context: float, width: int) -> float:
    return 2.0 * size.layers * size.kv_heads * size.head_dim * width * context


def tokens(count: int) -> list[int]:
    """Return the same random tokens in every run."""
    ids: list[int] = np.random.default_rng(1).integers(0, VOCABULARY, count).tolist()
    return ids


class Race:
    """Lanes that are open at the same time, and what they measured."""

    def __init__(self, spec: Spec, reference: Transformer) -> None:
        self.spec, self.reference = spec, reference

    def decode(self, lanes: Sequence[Lane], context: int) -> dict[str, Row]:
        """Time single tokens around a context, the same in all lanes."""
        spec = self.spec
        total = (spec.turn + 1) * (spec.rounds + 1)
        ids = tokens(max(context - total // 2, 1) + total)
        prompt, answer = ids[:-total], ids[-total:]
        rows: dict[str, Row] = {lane.label: {"wall": [], "cpu": []} for lane in lanes}
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
            for lane, participant in zip(lanes, open_, strict=True):
                rows[lane.label]["bytes"] = lane.entrant.bytes(lane.setting, participant, len(prompt) + total)
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
        thresholds = _tensors(thresholds_of(self.spec.files.size, lane.setting.experts))
        expected = self.reference(torch.tensor([list(prompt)]), thresholds).logits[0, -1].numpy()
        difference = float((participant.logits() - expected).std() / expected.std())
        if self.spec.precision == "fp32" and not difference <= FP32_TOLERANCE:
            raise RuntimeError(
                f"{lane.label} of {self.spec.model} in fp32 differs from torch by {difference:.1e} of the deviation of "
                f"the logits, expected at most {FP32_TOLERANCE}: it does not compute the same model"
            )
        return difference


def _tensors(thresholds: Thresholds) -> ThresholdTensors:
    return ThresholdTensors(
        *(
            torch.from_numpy(values)
            for values in (
                thresholds.router_top_p,
                thresholds.depth_threshold,
                thresholds.exit_threshold,
                thresholds.head_top_p,
            )
        )
    )


def _cpu_clock(threads: int) -> Callable[[], float]:
    return time.thread_time if threads == 1 else time.process_time


def _order(count: int, number: int) -> list[int]:
    return [(number + index) % count for index in range(count)]


@contextmanager
def _open(lanes: Sequence[Lane]) -> Iterator[list[Participant]]:
    participants: list[Participant] = []
    try:
        for lane in lanes:
            participants.append(lane.entrant.open(lane.setting))
        yield participants
    finally:
        for participant in participants:
            participant.close()
        participants.clear()
        gc.collect()


def measure(spec: Spec) -> Row:
    """Measure everything of a cell."""
    files = spec.files
    everyone = entrants(files, spec.precision, spec.threads)
    race = Race(spec, files.model)
    most = (spec.turn + 1) * (spec.rounds + 1)
    width = {"fp32": 4, "int8": 1.0625, "int4": 0.5625}[spec.precision]

    def room(context: int) -> Setting:
        return Setting(max(context, most) + most, spec.experts)

    result: Row = {"decode": {}, "prefill": {}, "experts": {}, "layers": {}, "batch": {}}
    bandwidth = [read_bandwidth(int(files.size.weights() * width), spec.threads).bytes_per_second]
    for context in spec.contexts:
        _say(spec, f"decode at {context}")
        result["decode"][context] = race.decode([Lane(e.name, e, room(context)) for e in everyone], context)
    for count in spec.prefills:
        _say(spec, f"prefill of {count}")
        lanes = [Lane(e.name, e, Setting(count + 8, spec.experts)) for e in everyone]
        result["prefill"][count] = race.prefill(lanes, count)
    if files.size.experts > 1:
        _say(spec, "experts")
        numbers = [count for count in (8, 4, 2, 1) if count <= files.size.experts]
        lanes = [
            Lane(f"{e.name}/{count}", e, room(PROMPT)._replace(experts=count))
            for e in everyone
            if e.sets_experts
            for count in numbers
        ]
        result["experts"] = race.decode(lanes, PROMPT)
    half = files.size.layers // 2
    lanes = [
        Lane(f"{e.name}/{skipped}", e, room(PROMPT)._replace(skipped=skipped))
        for e in everyone
        if e.skips_layers
        for skipped in (0, half)
    ]
    if lanes:
        _say(spec, "layers")
        result["layers"] = race.decode(lanes, PROMPT)
    for batch in spec.batches:
        lanes = [Lane(e.name, e, room(PROMPT)._replace(batch=batch)) for e in everyone if e.most_batch >= batch]
        if batch > 1 and lanes:
            _say(spec, f"batch of {batch}")
            result["batch"][batch] = race.decode(lanes, PROMPT)
    bandwidth.append(read_bandwidth(int(files.size.weights() * width), spec.threads).bytes_per_second)
    result["bandwidth"] = max(bandwidth)
    return result


def alone(spec: Spec, name: str) -> Row:
    """Measure the memory and the loading of one entrant, which has this process to itself."""
    entrant = next(e for e in entrants(spec.files, spec.precision, spec.threads) if e.name == name)
    importlib.import_module(PACKAGES.get(name, "onnxruntime"))
    if name == "transformers":
        importlib.import_module("transformers.models.auto.modeling_auto")
    gc.collect()
    before = psutil.Process().memory_info().rss
    begin = time.perf_counter()
    participant = entrant.open(Setting(2 * PROMPT, spec.experts))
    loaded = time.perf_counter()
    participant.begin(tokens(PROMPT))
    first = time.perf_counter()
    for token in tokens(16):
        participant.step(token)
    session = participant.session if isinstance(participant, Ours) else None
    return {
        "kernel": getattr(session, "kernel", None),
        "load_seconds": loaded - begin,
        "first_token_seconds": first - begin,
        "memory_bytes": max(peak_memory() - before, 0),
    }


def _say(spec: Spec, what: str) -> None:
    print(f"{spec.model} {spec.precision} {spec.threads} threads: {what}", file=sys.stderr, flush=True)


def main() -> None:
    """Measure the cell of a file, or one entrant of it alone, and print the result as JSON."""
    fields = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    spec = Spec(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})
    if spec.core is not None:
        psutil.Process().cpu_affinity([spec.core])
    torch.set_num_threads(spec.threads)
    result = measure(spec) if len(sys.argv) < 3 else alone(spec, sys.argv[2])
    print(json.dumps({"spec": asdict(spec), **result}))


if __name__ == "__main__":
    main()
