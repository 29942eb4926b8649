"""`adaptive bench`: measure the speed, the memory floor and the quality of an exported model on this machine."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...contract.errors import UserError, WrongUsageError
from ...contract.file_names import HELDOUT
from ..dial import Dial, resolve
from ..execution.memory.states import state_bytes
from ..generation.engine import Engine, load
from .contexts import check_contexts, time_contexts
from .machine import describe, peak_memory
from .memory_bound import floor_seconds, read_bandwidth
from .nodes import nodes_per_token
from .quality.given_text import read_text
from .quality.perplexity import Text
from .sweep import points, sweep
from .timing import Distribution, Timed, time_points


@dataclass(frozen=True, kw_only=True)
class BenchParams:
    """Parameters of a benchmark.

    Raises:
        WrongUsageError: a number is outside its range.
    """

    prompt_tokens: int = 64
    """Length of the prompt, at least 1."""
    new_tokens: int = 128
    """Tokens to decode after the prompt, at least 1."""
    repeats: int = 5
    """Rounds to measure, at least 1; one more warms up."""
    seed: int = 0
    """Seed of the place in the text and of the sampling, at least 0."""
    walk: bool = False
    """Whether to measure points of the dial."""
    text: Path | None = None
    """Text to read and to score; None takes the held-out text of the run, if there is one."""
    text_tokens: int = 8192
    """Most tokens to score at each point, at least 1."""
    contexts: tuple[int, ...] = ()
    """Lengths of text after which decoding is measured too, each at least 1."""
    dial: Dial = field(default_factory=Dial)
    """The point of the dial at which the model runs."""

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "new_tokens", "repeats", "text_tokens"):
            if getattr(self, name) < 1:
                raise WrongUsageError(f"found {name} {getattr(self, name)}, expected at least 1")
        for context in self.contexts:
            if context < 1:
                raise WrongUsageError(f"found contexts {context}, expected at least 1")
        if self.seed < 0:
            raise WrongUsageError(f"found seed {self.seed}, expected a whole number of at least 0")


def bench(
    folder: Path, params: BenchParams, *, device: str = "auto", target: str = "auto", threads: int | None = None,
    verify: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Measure the model in `folder`; return all figures under the keys of `bench --json`.

    Raises:
        UserError: the model cannot be loaded (see `load`), prompt and new tokens do not fit into its context, or the
            text cannot be read.
    """
    import onnxruntime  # noqa: F401 - its import should not count as loading

    begin = time.perf_counter()
    engine = load(folder, device=device, target=target, threads=threads, verify=verify)
    load_seconds = time.perf_counter() - begin
    check_fits(engine, params)
    check_contexts(engine, params.contexts, params.new_tokens)
    text, run = None, folder / ".."
    if params.text is not None or (run / HELDOUT).is_file():
        text, _ = read_text(engine, params.text, run, "--text", least=2)  # the first token is not scored
    ids, origin = tokens_to_read(engine, text, params.prompt_tokens + params.new_tokens, params.seed)
    prompt, answer = ids[: params.prompt_tokens], ids[params.prompt_tokens :]

    point = resolve(engine.manifest, params.dial)
    timed = time_points(engine, [point], prompt, answer, repeats=params.repeats, seed=params.seed)[0]
    memory = peak_memory()  # before the nodes and the floor, which would count
    nodes = nodes_per_token(engine, folder)
    model = engine.manifest.model
    result: dict[str, Any] = {
        "machine": describe(engine.session),
        "target": engine.session.target,
        "kernel": engine.session.kernel,
        "nodes_per_token": nodes,
        "note": engine.session.note,
        "model": {
            "folder": str(folder),
            "precision": model.precision,
            "num_layers": model.num_layers,
            "dim": model.dim,
            "num_experts": model.num_experts,
            "num_heads": model.num_heads,
            "routes_heads": model.routes_heads,
            "vocab_size": model.vocab_size,
            "context_length": model.context_length,
            "state_bytes": state_bytes(model),
            "file_bytes": sum(info.bytes for info in engine.manifest.files.values()),
            "load_seconds": round(load_seconds, 4),
            "peak_memory_bytes": memory,
            "thresholds": point.as_lists(),
        },
        "settings": {"prompt_tokens": params.prompt_tokens, "new_tokens": params.new_tokens, "repeats": params.repeats,
                     "seed": params.seed, "tokens_from": origin},
        "prefill": prefill_json(timed, params.prompt_tokens),
        "decode": decode_json(engine, timed),
    }  # fmt: skip
    if params.contexts:
        count = max(params.contexts) + params.new_tokens
        ids, _ = tokens_to_read(engine, text, count, params.seed)
        result["contexts"] = time_contexts(
            engine, point, ids, params.contexts, params.new_tokens, repeats=params.repeats, seed=params.seed
        )
    if params.walk:
        walked = points(engine.manifest, params.dial)
        result["sweep"] = sweep(
            engine,
            walked,
            prompt,
            answer,
            text,
            repeats=params.repeats,
            seed=params.seed,
            max_tokens=params.text_tokens,
        )
    return result


def check_fits(engine: Engine, params: BenchParams) -> None:
    """Raise UserError unless prompt and new tokens fit into the context of the model."""
    context = engine.manifest.model.context_length
    if params.prompt_tokens + params.new_tokens > context:
        raise UserError(
            f"found {params.prompt_tokens} prompt tokens and {params.new_tokens} new ones; "
            f"this model's context is {context} tokens; lower --prompt-tokens or --new-tokens"
        )


def prefill_json(timed: Timed, tokens: int) -> dict[str, Any]:
    """Return the figures of computing the prompt in one pass."""
    milliseconds = Distribution.of(1000 * np.array(timed.prefill))
    return {
        "tokens": tokens,
        "tokens_per_second": round(1000 * tokens / milliseconds.median, 2),
        "milliseconds": {name: round(value, 4) for name, value in asdict(milliseconds).items()},
        "cpu_milliseconds": round(1000 * float(np.median(timed.prefill_cpu)), 4),
    }


def decode_json(engine: Engine, timed: Timed) -> dict[str, Any]:
    """Return the figures of decoding token by token, with the memory floor of what it executed."""
    milliseconds, tally = timed.milliseconds, timed.tally
    costs = engine.session.costs.weight_bytes
    size = costs.lm_head + sum(
        layer.attention
        + layer.head * engine.manifest.model.num_heads
        + layer.router
        + layer.expert * shape.num_experts
        + layer.shared_expert
        for layer, shape in zip(costs.layers, engine.manifest.model.layers, strict=True)
    )
    bandwidth = read_bandwidth(int(size), engine.session.threads)
    read = tally.executed_bytes / tally.tokens
    floor = 1000 * floor_seconds(read, bandwidth)
    return {
        "tokens_per_second": round(1000 / milliseconds.median, 2),
        "milliseconds_per_token": {name: round(value, 5) for name, value in asdict(milliseconds).items()},
        "cpu_milliseconds_per_token": round(1000 * float(np.median(timed.rounds_cpu)), 5),
        "spread": round(timed.spread, 4),
        **tally.means(),
        "executed_flops_share": round(tally.share, 5),
        "bytes_per_token": round(read),
        "memory_bandwidth": {**asdict(bandwidth), "bytes_per_second": round(bandwidth.bytes_per_second)},
        "memory_floor_milliseconds": round(floor, 5),
        "memory_floor_share": round(floor / milliseconds.median, 4),
    }  # fmt: skip


def tokens_to_read(engine: Engine, text: Text | None, count: int, seed: int) -> tuple[list[int], str]:
    """Return `count` tokens of the text from a seeded place, or seeded random ones if it is too short, and which."""
    random = np.random.default_rng(seed)
    if text is not None and len(text.ids) >= count:
        begin = int(random.integers(len(text.ids) - count + 1))
        return text.ids[begin : begin + count], "text"
    return [int(token) for token in random.integers(engine.manifest.model.tokenizer_size, size=count)], "random ids"
