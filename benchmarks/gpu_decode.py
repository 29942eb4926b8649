"""The decode part of the GPU benchmark: moe-57m in both graphs that a GPU runs, with transformers as a peer.

Everyone has the same random weights and takes turns. Wall clock, since a GPU has no other: every turn ends when the
logits are in the memory of the host. ONNX Runtime runs without CUDA graphs, which cannot hold an `If`.
"""

import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from decode_models import DEFAULT_EXPERTS, SIZES, VOCABULARY, Size, build, for_torch, thresholds_of, write_run
from gpu_part import Part

from adaptive_lm.export.package import write_files
from adaptive_lm.export.source import read
from adaptive_lm.runtime.execution.session import Session
from adaptive_lm.runtime.format.manifest import Precision, Precisions
from adaptive_lm.runtime.measuring.timing import Distribution

SMALL = Size(64, 2, 4, 2, 96, experts=8)
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
TURN = 16
"""Tokens of a turn."""
MOST_ROUNDS = 20
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


class Lane(Protocol):
    """A participant with an open model."""

    def begin(self, ids: Sequence[int]) -> "np.ndarray[Any, Any]":
        """Read a prompt from the start; return the logits (V,) after it."""

    def step(self, token: int) -> None:
        """Compute one token."""


class Ours:
    """A session of our runtime."""

    def __init__(self, part: Part, folder: Path, target: str, size: Size, experts: int, capacity: int) -> None:
        self.session = Session(folder, device=part.device, target=target, verify=False)
        self.sequence = self.session.sequence(thresholds_of(size, experts), capacity)

    def begin(self, ids: Sequence[int]) -> "np.ndarray[Any, Any]":
        """Read a prompt from the start."""
        self.sequence.rewind(0)
        return self.sequence.prefill(ids).logits[-1]

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

    def begin(self, ids: Sequence[int]) -> "np.ndarray[Any, Any]":
        """Read a prompt from the start."""
        self.cache = None
        return self._run(list(ids))

    def step(self, token: int) -> None:
        """Compute one token."""
        self._run([token])

    @torch.no_grad()
    def _run(self, ids: list[int]) -> "np.ndarray[Any, Any]":
        inputs = torch.tensor([ids], device=self.part.device)
        out = self.model(inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        return cast("np.ndarray[Any, Any]", out.logits[0, -1].float().cpu().numpy())  # waits for the GPU


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
        return self._rounds(seconds, lambda lane: self._turn(lane))

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

    def _timed(self, work: Any) -> float:
        self.part.synchronize()
        begin = time.perf_counter()
        work()
        self.part.synchronize()
        return time.perf_counter() - begin

    def _rounds(self, seconds: float, time_of: Any) -> dict[str, list[float]]:
        times: dict[str, list[float]] = {name: [] for name in self.lanes}
        end = time.monotonic() + seconds
        for number in range(MOST_ROUNDS):
            names = list(self.lanes)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                times[name].append(time_of(self.lanes[name]))
            if number >= 2 and time.monotonic() > end:
                break
        return times


def tokens(count: int) -> list[int]:
    """Return ids that spread over the vocabulary."""
    return [(7919 * i + 13) % VOCABULARY for i in range(count)]


def report(part: Part, what: str, count: int, times: dict[str, list[float]]) -> None:
    """Add a row for each participant."""
    for name, values in times.items():
        target, precision = name.split("/")[:2]
        spread = Distribution.of(np.asarray(values) * 1e3)
        peer = times.get(f"transformers/{precision}")
        ratio = None if peer is None else float(np.median(np.asarray(values) / np.asarray(peer)))
        part.add(
            what=what, count=count, name=target, precision=precision, experts=int(name.split("/")[2:][0])
            if name.count("/") > 1 else DEFAULT_EXPERTS, rounds=len(values),
            ms=[spread.median, spread.p5, spread.p95], of_transformers=ratio,
        )  # fmt: skip


def main() -> None:
    """Time decoding at two contexts, prompts of two lengths, and all experts beside two."""
    part = Part.from_arguments()
    size = SMALL if part.small else SIZES["moe-57m"]
    contexts, prompts = ((64,), (64,)) if part.small or part.seconds < 100 else ((64, 512), (64, 512))
    run, lanes = part.work / "run", {}
    room = max(*contexts, *prompts) + TURN * (MOST_ROUNDS + 1)
    expected: Any = None

    def export() -> None:
        nonlocal expected
        write_run(run, size)
        source = read(run)
        with torch.no_grad():
            ids = torch.tensor([tokens(64)])
            expected = source.model(ids, for_torch(thresholds_of(size, DEFAULT_EXPERTS))).logits[0, -1].numpy()
        for precision in PRECISIONS:
            folder = part.work / precision
            folder.mkdir(exist_ok=True)
            write_files(source, folder, Precisions.of(precision), ("cuda",)).write(folder)

    if not part.attempt("writing moe-57m", export):
        return
    for precision in PRECISIONS:
        for target in ("portable", "cuda"):

            def open_ours(target: str = target, precision: str = precision, experts: int = DEFAULT_EXPERTS) -> None:
                name = f"{target}/{precision}" + ("" if experts == DEFAULT_EXPERTS else f"/{experts}")
                lanes[name] = Ours(part, part.work / precision, target, size, experts, room)

            part.attempt(f"opening {target}, {precision}", open_ours)
    if importlib.util.find_spec("transformers") is None:
        part.facts["transformers"] = "not installed"
    else:

        def open_peer() -> None:
            from hf_folder import write_hf

            from adaptive_lm.train.data.tokenizers import byte_tokenizer

            write_hf(part.work / "hf", build(size), byte_tokenizer().to_str())
            for precision in PRECISIONS:
                lanes[f"transformers/{precision}"] = Transformers(part, part.work / "hf", precision)

        part.attempt("opening transformers", open_peer)
    differences = {}
    for name in list(lanes):

        def first(name: str = name) -> None:
            differences[name] = float(np.abs(lanes[name].begin(tokens(64)) - expected).max() / expected.std())

        if not part.attempt(f"the first prompt of {name}", first):
            del lanes[name]
    part.facts["difference"] = differences
    race = Race(part, lanes)
    share = 0.8 * part.left() / (len(contexts) + len(prompts) + 1)
    for context in contexts:
        part.attempt(f"decoding at {context}", lambda c=context: report(part, "decode", c, race.decode(c, share)))
    for count in prompts:
        part.attempt(f"a prompt of {count}", lambda c=count: report(part, "prefill", c, race.prefill(c, share)))

    def all_experts() -> None:
        every = {
            f"{target}/{precision}/{size.experts}": Ours(part, part.work / precision, target, size, size.experts, room)
            for precision in PRECISIONS
            for target in ("portable", "cuda")
            if f"{target}/{precision}" in lanes
        }
        report(part, "decode", 64, Race(part, cast("dict[str, Lane]", every)).decode(64, min(share, part.left() / 2)))

    part.attempt("decoding with all experts", all_experts)


if __name__ == "__main__":
    main()
