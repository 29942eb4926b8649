"""The decode part of the GPU benchmark: moe-57m in both graphs that a GPU runs, with transformers as a peer.

Everyone has the same random weights and takes turns. Wall clock, since a GPU has no other: every turn ends when the
logits are in the memory of the host. ONNX Runtime runs without CUDA graphs, which cannot hold an `If`.
"""

import importlib.util
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from accelerator.part import Part
from adaptive_lm.export.package import write_files
from adaptive_lm.export.source import read
from adaptive_lm.runtime.execution.session import Session
from adaptive_lm.runtime.format.manifest import Precision, Precisions
from adaptive_lm.runtime.measuring.timing import Distribution
from adaptive_lm.train.data.tokenizers.tokenizers import byte_tokenizer
from models.random_weights import DEFAULT_EXPERTS, SIZES, VOCABULARY, Size, build, for_torch, thresholds_of, write_run

Floats = NDArray[np.float32]
SMALL = Size(64, 2, 4, 2, 96, experts=8)
TARGETS = ("portable", "cuda")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
TURN = 16
"""Tokens of a turn."""
MOST_ROUNDS = 20
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


class Lane(Protocol):
    """A participant with an open model."""

    def begin(self, ids: Sequence[int]) -> Floats:
        """Read a prompt from the start; return the logits (V,) after it."""

    def step(self, token: int) -> None:
        """Compute one token."""


class Ours:
    """A session of our runtime."""

    def __init__(self, part: Part, folder: Path, target: str, size: Size, experts: int, capacity: int) -> None:
        self.session = Session(folder, device=part.device, target=target, verify=False)
        self.sequence = self.session.sequence(thresholds_of(size, experts), capacity)

    def begin(self, ids: Sequence[int]) -> Floats:
        """Read a prompt from the start."""
        self.sequence.rewind(0)
        logits: Floats = self.sequence.prefill(ids).logits[-1]
        return logits

    def step(self, token: int) -> None:
        """Compute one token."""
        self.sequence.step(token)


class Transformers:
    """A model of the transformers library with its own cache."""

    def __init__(self, part: Part, folder: Path, precision: str) -> None:
        from transformers import AutoModelForCausalLM

        self.part = part
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[precision])
        self.model: Any = model.to(part.device).eval()
        self.cache: Any = None

    def begin(self, ids: Sequence[int]) -> Floats:
        """Read a prompt from the start."""
        self.cache = None
        return self._run(list(ids))

    def step(self, token: int) -> None:
        """Compute one token."""
        self._run([token])

    @torch.no_grad()
    def _run(self, ids: list[int]) -> Floats:
        inputs = torch.tensor([ids], device=self.part.device)
        out = self.model(inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        logits: Floats = out.logits[0, -1].float().cpu().numpy()  # waits for the GPU
        return logits


class Race:
    """The participants that opened, and their turns."""

    def __init__(self, part: Part, lanes: dict[str, Lane]) -> None:
        self.part, self.lanes = part, lanes

    def decode(self, context: int, seconds: float) -> dict[str, list[float]]:
        """Return the seconds of a token, one for each round and participant."""
        for lane in self.lanes.values():
            lane.begin(tokens(context))
            for token in tokens(3):  # the first passes choose kernels and allocate
                lane.step(token)
        return self._rounds(seconds, self._turn)

    def prefill(self, count: int, seconds: float) -> dict[str, list[float]]:
        """Return the seconds of a prompt, one for each round and participant."""
        for lane in self.lanes.values():
            for _ in range(2):
                lane.begin(tokens(count))
        return self._rounds(seconds, lambda lane: self._timed(lambda: lane.begin(tokens(count))))

    def _turn(self, lane: Lane) -> float:
        def turn() -> None:
            for token in tokens(TURN):
                lane.step(token)

        return self._timed(turn) / TURN

    def _timed(self, work: Callable[[], object]) -> float:
        self.part.synchronize()
        begin = time.perf_counter()
        work()
        self.part.synchronize()
        return time.perf_counter() - begin

    def _rounds(self, seconds: float, time_of: Callable[[Lane], float]) -> dict[str, list[float]]:
        """Let everyone take turns until the time is over; who fails is left out of the result."""
        times: dict[str, list[float]] = {name: [] for name in self.lanes}
        end = time.monotonic() + seconds
        for number in range(MOST_ROUNDS):
            names = list(times)
            first = number % max(len(names), 1)
            for name in names[first:] + names[:first]:
                try:
                    times[name].append(time_of(self.lanes[name]))
                except Exception as error:
                    self.part.failures.append(f"{name}: {type(error).__name__}: {error}"[:300])
                    del times[name]
            if number >= 2 and time.monotonic() > end:
                break
        return times


def tokens(count: int) -> list[int]:
    """Return ids that spread over the vocabulary."""
    return [(7919 * i + 13) % VOCABULARY for i in range(count)]


def report(part: Part, what: str, count: int, times: dict[str, list[float]]) -> None:
    """Add a row for each participant."""
    for name, values in times.items():
        target, precision, experts = name.split("/")
        spread = Distribution.of(np.asarray(values) * 1e3)
        peer = times.get(f"transformers/{precision}/{experts}")
        ratio = None if peer is None else float(np.median(np.asarray(values) / np.asarray(peer)))
        part.add(
            what=what, count=count, name=target, precision=precision, experts=int(experts), rounds=len(values),
            ms=[spread.median, spread.p5, spread.p95], of_transformers=ratio,
        )  # fmt: skip


class Benchmark:
    """The files, the participants, and what is timed."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.size = SMALL if part.small else SIZES["moe-57m"]
        self.lengths = (64,) if part.small or part.seconds < 100 else (64, 512)
        self.room = max(self.lengths) + TURN * (MOST_ROUNDS + 1)
        self.lanes: dict[str, Lane] = {}
        self.expected: Floats = np.zeros(0, np.float32)
        self.differences: dict[str, float] = {}

    def run(self) -> None:
        """Time decoding after prompts of two lengths, these prompts, and all experts beside two."""
        part, names = self.part, [(target, precision) for precision in PRECISIONS for target in TARGETS]
        if not part.attempt("writing moe-57m", self.write):
            return
        for target, precision in names:
            part.attempt(f"opening {target}, {precision}", partial(self.open, target, precision, DEFAULT_EXPERTS))
        if importlib.util.find_spec("transformers") is None:
            part.facts["transformers"] = "not installed"
        else:
            part.attempt("opening transformers", self.open_transformers)
        for name in list(self.lanes):
            if not part.attempt(f"the first prompt of {name}", partial(self.first, name)):
                del self.lanes[name]
        part.facts["difference"] = self.differences
        share = 0.8 * part.left() / (2 * len(self.lengths) + 1)
        for length in self.lengths:
            part.attempt(f"decoding at {length}", partial(self.decode, length, share))
            part.attempt(f"a prompt of {length}", partial(self.prefill, length, share))
        self.lanes = {}
        for target, precision in names:
            part.attempt(f"opening {target}, {precision}", partial(self.open, target, precision, self.size.experts))
        part.attempt("decoding with all experts", partial(self.decode, 64, min(share, part.left() / 2)))

    def write(self) -> None:
        """Write our models, and compute what torch says after the first prompt."""
        write_run(self.part.work / "run", self.size)
        source = read(self.part.work / "run")
        with torch.no_grad():
            limits = for_torch(thresholds_of(self.size, DEFAULT_EXPERTS))
            self.expected = source.model(torch.tensor([tokens(64)]), limits).logits[0, -1].numpy()
        for precision in PRECISIONS:
            folder = self.part.work / precision
            folder.mkdir(exist_ok=True)
            write_files(source, folder, Precisions.of(precision), ("cuda",)).write(folder)

    def open(self, target: str, precision: Precision, experts: int) -> None:
        """Open a graph of ours."""
        lane = Ours(self.part, self.part.work / precision, target, self.size, experts, self.room)
        self.lanes[f"{target}/{precision}/{experts}"] = lane

    def open_transformers(self) -> None:
        """Open the peer, with the same weights."""
        from models.hf_folder import write_hf

        write_hf(self.part.work / "hf", build(self.size), byte_tokenizer().to_str())
        for precision in PRECISIONS:
            lane = Transformers(self.part, self.part.work / "hf", precision)
            self.lanes[f"transformers/{precision}/{DEFAULT_EXPERTS}"] = lane

    def first(self, name: str) -> None:
        """Compare the first logits with torch's."""
        difference = np.abs(self.lanes[name].begin(tokens(64)) - self.expected).max() / self.expected.std()
        self.differences[name.rsplit("/", 1)[0]] = float(difference)

    def decode(self, context: int, seconds: float) -> None:
        """Time decoding after a prompt."""
        report(self.part, "decode", context, Race(self.part, self.lanes).decode(context, seconds))

    def prefill(self, count: int, seconds: float) -> None:
        """Time a prompt."""
        report(self.part, "prefill", count, Race(self.part, self.lanes).prefill(count, seconds))


if __name__ == "__main__":
    Benchmark(Part.from_arguments()).run()
