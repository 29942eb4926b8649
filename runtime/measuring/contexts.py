"""The time of a token by the length of the text before it: keys and values grow with the text, states do not."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ...contract.errors import UserError
from ..dial import Thresholds
from ..execution.memory.kv_cache import cache_bytes
from ..execution.memory.states import state_bytes
from ..execution.sequence import Sequence as Tokens
from ..execution.usage.total import Total
from ..generation.engine import Engine
from ..generation.sampling.sampler import Sampler, Sampling
from .timing import Distribution, no_collection

PASS_TOKENS = 512
"""Tokens of one pass that reads the text before, which bounds its memory."""


@dataclass
class _Context:
    """The measurements after one number of tokens."""

    tokens: int
    sequence: Tokens
    rounds: list[list[float]] = field(default_factory=list)
    """Seconds of each decoded token, by round."""
    tally: Total = field(default_factory=Total)


def check_contexts(engine: Engine, contexts: Sequence[int], new_tokens: int) -> None:
    """Raise UserError unless the longest text and the new tokens fit into the context of the model."""
    limit, longest = engine.manifest.model.context_length, max(contexts, default=0)
    if longest + new_tokens > limit:
        raise UserError(
            f"found a context of {longest} tokens and {new_tokens} new ones; this model's context is {limit} tokens; "
            "lower --contexts or --new-tokens"
        )


def time_contexts(
    engine: Engine, point: Thresholds, ids: Sequence[int], contexts: Sequence[int], new_tokens: int, *, repeats: int,
    seed: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Decode `new_tokens` tokens after texts of several lengths, in turns, and return the figures of each length.

    Args:
        engine: The model.
        point: The thresholds.
        ids: Tokens to read, at least the longest context and the new tokens. Each context is the beginning of them.
        contexts: Tokens before those that are measured.
        new_tokens: Tokens of a round.
        repeats: Rounds; one more warms up and counts what tokens use.
        seed: Seed of the order of the turns and of the sampling.
    """
    each = [_Context(count, engine.session.sequence(point, count + new_tokens)) for count in contexts]
    order = np.random.default_rng(seed)
    for one in each:
        _round(engine, one, ids[: one.tokens + new_tokens], seed, warm=True)
    with no_collection():
        for _ in range(repeats):
            for index in order.permutation(len(each)):
                one = each[index]
                _round(engine, one, ids[: one.tokens + new_tokens], seed, warm=False)
    return [_figures(engine, one, each[0]) for one in each]


def _round(engine: Engine, one: _Context, ids: Sequence[int], seed: int, *, warm: bool) -> None:
    sequence = one.sequence
    sequence.rewind(sequence.nearest(min(one.tokens, sequence.position)))
    for begin in range(sequence.position, one.tokens, PASS_TOKENS):
        sequence.prefill(ids[begin : min(begin + PASS_TOKENS, one.tokens)], 0)
    sequence.checkpoint()  # the next round goes back to here
    sampler = Sampler(Sampling(seed=seed), engine.manifest.model.tokenizer_size, list(ids[: one.tokens]))
    seconds = []
    for token in ids[one.tokens :]:
        begun = time.perf_counter()
        step = sequence.step(token)
        sampler.choose(step.logits[-1])
        seconds.append(time.perf_counter() - begun)
        if warm:
            one.tally += engine.session.meter.total([step.routes])
    if not warm:
        one.rounds.append(seconds)


def _figures(engine: Engine, one: _Context, first: _Context) -> dict[str, Any]:
    model, kv = engine.manifest.model, engine.session.graph.kv
    milliseconds = 1000 * np.array(one.rounds)  # (rounds, tokens)
    ratios = np.median(milliseconds, axis=1) / np.median(1000 * np.array(first.rounds), axis=1)
    return {
        "context": one.tokens,
        "milliseconds_per_token": _rounded(Distribution.of(milliseconds.ravel())),
        "ratio": _rounded(Distribution.of(ratios)),
        "bytes_per_token": round(one.tally.executed_bytes / one.tally.tokens),
        "cache_bytes": cache_bytes(model, one.tokens, kv),
        "state_bytes": state_bytes(model),
    }


def _rounded(values: Distribution) -> dict[str, float]:
    return {name: round(value, 5) for name, value in asdict(values).items()}
