"""`adaptive bench --compare`: the time of several models or graphs, in alternating rounds of one run.

Ratios are those of one round, whose measurements are close in time; of these the median and the spread over the rounds.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...contract.errors import UserError, WrongUsageError
from ...contract.file_names import HELDOUT, TOKENIZER
from ..dial import resolve
from ..format.locate import find_model
from ..generation.engine import Engine, load
from .bench import BenchParams, check_fits, tokens_to_read
from .machine import describe
from .nodes import nodes_per_token
from .quality.given_text import read_text
from .timing import Distribution, Timed, time_engines

TARGETS = ("portable", "cpu", "cuda")


@dataclass(frozen=True)
class Entry:
    """One of the things compared."""

    name: str
    """As it was given."""
    folder: Path
    target: str
    """`auto` or one of TARGETS."""


def entries(given: Sequence[str], target: str) -> list[Entry]:
    """Read `MODEL` or `MODEL:TARGET`, as `--compare` takes them; `target` is that of a model without its own.

    Raises:
        UserError: There is no such model.
        WrongUsageError: There are fewer than two.
    """
    if len(given) < 2:
        name = given[0] if given else "MODEL"
        model = name.rpartition(":")[0] if name.endswith(tuple(f":{target}" for target in TARGETS)) else name
        raise WrongUsageError(
            f"found {len(given)} models to compare, expected two or more; type: adaptive bench --compare {name} OTHER, "
            f"or, to compare two graphs of one model: adaptive bench --compare {model}:cpu {model}:portable"
        )
    return [_entry(name, target) for name in given]


def _entry(name: str, target: str) -> Entry:
    model, colon, own = name.rpartition(":")
    if colon and own in TARGETS:
        return Entry(name, find_model(model), own)
    try:
        return Entry(name, find_model(name), target)
    except UserError:
        if not colon:
            raise
        find_model(model)  # if there is no such model either, its own message says more
        raise WrongUsageError(
            f"found target {own!r} in {name}, expected {', '.join(TARGETS)}; type: {model}:portable"
        ) from None


def compare_models(
    given: Sequence[Entry], params: BenchParams, *, device: str = "auto", threads: int | None = None,
    verify: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Measure all of them; return the figures under the keys of `bench --compare --json`.

    Raises:
        UserError: A model cannot be loaded (see `load`) or has no such dial, prompt and new tokens do not fit into its
            context, or the text cannot be read.
    """
    import onnxruntime  # noqa: F401 - its import should not count as loading

    engines, load_seconds = [], []
    for entry in given:
        begin = time.perf_counter()
        engine = load(entry.folder, device=device, target=entry.target, threads=threads, verify=verify)
        load_seconds.append(time.perf_counter() - begin)
        check_fits(engine, params)
        engines.append(engine)
    ids, origin = tokens_for(engines, given[0].folder, params)
    prompt, answer = ids[: params.prompt_tokens], ids[params.prompt_tokens :]
    points = [resolve(engine.manifest, params.dial) for engine in engines]
    timed = time_engines(
        list(zip(engines, points, strict=True)), prompt, answer, repeats=params.repeats, seed=params.seed
    )
    machine = describe(engines[0].session)
    for own in ("target", "kernel"):
        machine.pop(own)  # of each model
    return {
        "machine": machine,
        "settings": {"prompt_tokens": params.prompt_tokens, "new_tokens": params.new_tokens, "repeats": params.repeats,
                     "seed": params.seed, "tokens_from": origin},
        "models": [
            {
                "name": entry.name,
                "folder": str(entry.folder),
                "precision": engine.manifest.model.precision,
                "target": engine.session.target,
                "kernel": engine.session.kernel,
                "threads": engine.session.threads,
                "load_seconds": round(seconds, 4),
                "nodes_per_token": nodes_per_token(engine, entry.folder),
                "prefill": passes_json([[s] for s in one.prefill], [[s] for s in one.prefill_cpu]),
                "decode": passes_json(one.rounds, one.rounds_cpu),
                "ratio": ratios_json(one, timed[0]),
            }
            for entry, engine, seconds, one in zip(given, engines, load_seconds, timed, strict=True)
        ],
    }  # fmt: skip


def tokens_for(engines: Sequence[Engine], folder: Path, params: BenchParams) -> tuple[list[int], str]:
    """Return the tokens that all models read, and where they are from.

    They are from a text where all models have one tokenizer, else random ids that all have.

    Args:
        engines: The models.
        folder: The folder of the first, whose run has a held-out text.
        params: The text, and the number of tokens.
    """
    count = params.prompt_tokens + params.new_tokens
    one_tokenizer = len({engine.manifest.files[TOKENIZER].sha256 for engine in engines}) == 1
    if not one_tokenizer:
        if params.text is not None:
            raise UserError(
                f"found --text {params.text} for models with different tokenizers, expected one tokenizer; "
                "leave --text out to compare them on random ids that all of them have"
            )
        size = min(engine.manifest.model.tokenizer_size for engine in engines)
        random = np.random.default_rng(params.seed)
        return [int(token) for token in random.integers(size, size=count)], "random ids, since tokenizers differ"
    text, run = None, folder / ".."
    if params.text is not None or (run / HELDOUT).is_file():
        text, _ = read_text(engines[0], params.text, run, "--text", least=2)
    return tokens_to_read(engines[0], text, count, params.seed)


def passes_json(wall: Sequence[Sequence[float]], cpu: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return the milliseconds of passes, given as seconds by round, of the clock and of the processor."""
    return {"milliseconds": _milliseconds(wall), "cpu_milliseconds": _milliseconds(cpu)}


def ratios_json(timed: Timed, first: Timed) -> dict[str, Any]:
    """Return the times of a model over those of the first one, paired by round."""

    def ratios(of: Callable[[Timed], Sequence[Sequence[float]]]) -> dict[str, float]:
        return _rounded(Distribution.of(_medians(of(timed)) / _medians(of(first))), 4)

    return {
        "prefill": ratios(lambda one: [[seconds] for seconds in one.prefill]),
        "prefill_cpu": ratios(lambda one: [[seconds] for seconds in one.prefill_cpu]),
        "decode": ratios(lambda one: one.rounds),
        "decode_cpu": ratios(lambda one: one.rounds_cpu),
    }


def _medians(rounds: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    return np.asarray(np.median(np.array(rounds), axis=1))


def _milliseconds(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    return _rounded(Distribution.of(1000 * np.array(rounds).ravel()), 5)


def _rounded(distribution: Distribution, digits: int) -> dict[str, float]:
    return {name: round(value, digits) for name, value in asdict(distribution).items()}
