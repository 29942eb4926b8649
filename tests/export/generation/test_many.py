"""Many texts at a time: each is what a run of its own gives, token for token, on the graphs of both targets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.operators.our_library import needs_library

from adaptive_lm.runtime import Engine, Loop, Params, Request, Token, load
from adaptive_lm.runtime.format.manifest import Precision
from adaptive_lm.runtime.generation import loop as loop_module
from adaptive_lm.runtime.generation import prefixes
from adaptive_lm.runtime.generation.prompt_limit import PromptLimit

WORDS = "the moon turns over a stone. night falls under the river. "
GRAPHS = [
    pytest.param("portable", "fp32", id="portable-fp32"),
    pytest.param("portable", "int8", id="portable-int8"),
    *(
        pytest.param("cpu", precision, id=f"cpu-{precision}", marks=needs_library)
        for precision in ("fp32", "int8", "int4")
    ),
]


def opened(folders: dict[Precision, Path], target: str, precision: Precision) -> Engine:
    return load(folders[precision], device="cpu", target=target, threads=1, verify=False)


def seen(tokens: list[Token]) -> list[Any]:
    """Return what is compared of a token: its id, its text and its whole usage."""
    return [(token.id, token.text, token.usage) for token in tokens]


def cold(engine: Engine, prompt: Any, params: Params) -> list[Any]:
    """Generate with nothing in memory."""
    fresh = Engine(engine.session, engine.tokenizer)
    return seen(list(fresh.generate(prompt, params)))


@pytest.mark.parametrize(("target", "precision"), GRAPHS)
def test_eight_prompts_of_mixed_lengths_are_eight_single_runs(
    folders: dict[Precision, Path], target: str, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PromptLimit, "tokens", 16)
    engine = opened(folders, target, precision)
    prompts = [
        WORDS[index:][:length] * times
        for index, (length, times) in enumerate([(1, 1), (5, 1), (40, 4), (17, 1), (50, 3), (3, 1), (29, 2), (11, 5)])
    ]
    params = [Params(seed=index, temperature=0.9 * (index % 3 > 0), max_new_tokens=20 + index) for index in range(8)]
    texts = list(engine.generate_many(prompts, params, slots=5))
    assert [one.index for one in texts] == list(range(8))
    for one, prompt, settings in zip(texts, prompts, params, strict=True):
        assert one.error is None
        assert seen(one.tokens) == cold(engine, prompt, settings)


@pytest.mark.parametrize(("target", "precision"), GRAPHS)
def test_random_joins_cancels_and_shared_beginnings_change_no_text(
    folders: dict[Precision, Path], target: str, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PromptLimit, "tokens", 24)
    monkeypatch.setattr(loop_module, "ALONE_GRID", 16)
    engine = opened(folders, target, precision)
    random = np.random.default_rng(8)
    loop = Loop(engine.session.batch(3, 160))
    size = engine.manifest.model.tokenizer_size
    tokens: dict[Request, list[Token]] = {}
    begun: list[tuple[Request, Params, list[int]]] = []
    reused = 0
    for _ in range(140):
        if random.random() < 0.25 and len(loop.requests) < 6:
            ids = random.integers(size, size=random.integers(1, 90)).tolist()
            if begun and random.random() < 0.6:  # the beginning of an earlier text, or all of it
                earlier = begun[random.integers(len(begun))][0].ids
                ids = [*earlier[: random.integers(1, len(earlier) + 1)], *ids[:5]][:120]
            params = Params(seed=int(random.integers(99)), max_new_tokens=int(random.integers(1, 40)),
                            router_top_p=float(random.choice([0.5, 0.9])))  # fmt: skip
            request = engine.request(ids, params)
            tokens[request] = []
            begun.append((request, params, ids))
            loop.submit(request)
        if loop.requests and random.random() < 0.05:
            loop.cancel(loop.requests[random.integers(len(loop.requests))])
        for event in loop.step():
            assert event.token is not None
            tokens[event.request].append(event.token)
    while loop.busy:
        for event in loop.step():
            assert event.token is not None
            tokens[event.request].append(event.token)
    assert len(begun) > 12
    for request, params, ids in begun:
        reused += request.cached_tokens
        whole = cold(engine, ids, params)
        ended = request.finish_reason != "cancelled"
        assert seen(tokens[request]) == (whole if ended else whole[: len(tokens[request])])
    assert reused > 60
    assert loop.free == 3


@pytest.mark.parametrize(("target", "precision"), GRAPHS)
def test_a_prompt_that_continues_the_last_text_reuses_it_with_the_same_result(
    folders: dict[Precision, Path], target: str, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "ALONE_GRID", 16)
    engine = opened(folders, target, precision)
    params = Params(temperature=0, max_new_tokens=12)
    ids = engine.tokenizer.encode(WORDS)
    for turn in range(3):
        generation = engine.generate(ids, params)
        tokens = list(generation)
        assert seen(tokens) == cold(engine, ids, params)
        if turn:
            shared = len(ids) - len(more) - 1  # noqa: F821 - of the turn before: all but its last token were computed
            assert generation.request.cached_tokens == (shared if target == "cpu" else shared // 16 * 16)
        more = engine.tokenizer.encode(" sun rises")
        ids = [*ids, *(token.id for token in tokens), *more]
    changed = Params(temperature=0, max_new_tokens=12, router_top_p=0.99)
    other = engine.generate(ids, changed)
    assert seen(list(other)) == cold(engine, ids, changed)
    assert other.request.cached_tokens == 0, "at other thresholds nothing is reused"


@needs_library
def test_beside_sequences_that_decode_a_pass_reads_as_many_tokens_of_prompts_as_the_measured_limit(
    folders: dict[Precision, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[int] = []

    def add(self: PromptLimit, seconds: float, prompt_tokens: int) -> None:
        assert seconds > 0
        recorded.append(prompt_tokens)

    monkeypatch.setattr(PromptLimit, "add", add)
    monkeypatch.setattr(PromptLimit, "tokens", 24)
    engine = opened(folders, "cpu", "int8")
    loop = Loop(engine.session.batch(3))
    decoding = engine.request("a", Params(temperature=0, max_new_tokens=40))
    loop.submit(decoding)
    for _ in range(4):
        loop.step()
    assert recorded == [0, 0, 0], "a prompt that is read alone keeps no sequence waiting"
    for length in (60, 8):
        loop.submit(engine.request([3] * length, Params(temperature=0, max_new_tokens=2)))
    while loop.busy:
        loop.step()
    assert [tokens for tokens in recorded if tokens] == [8 + 16, 24, 20], "what the short one leaves the long one takes"


def test_half_of_a_text_before_is_the_longest_prefix() -> None:
    assert prefixes.shared([1, 2, 3, 4], [1, 2, 9, 4], 4) == 2
    assert prefixes.shared([1, 2, 3], [1, 2, 3], 2) == 2
    assert prefixes.shared([1], [2], 1) == 0
    assert prefixes.shared([], [], 0) == 0


@pytest.mark.parametrize("target", ["portable", pytest.param("cpu", marks=needs_library)])
def test_cells_that_are_no_numbers_do_not_reach_the_next_text_of_their_slot(
    folders: dict[Precision, Path], target: str
) -> None:
    """Of the portable graph a masked cell counts as 0 * value, and 0 * nan is nan."""
    engine = opened(folders, target, "fp32")
    loop = Loop(engine.session.batch(1))
    params = Params(temperature=0, max_new_tokens=20)
    bad = engine.request(engine.tokenizer.encode(WORDS), params)
    loop.submit(bad)
    loop.step()
    assert bad.sequence is not None
    for value in bad.sequence.cache.values.values():
        value.numpy()[:] = np.nan
    while loop.busy:
        loop.step()
    assert bad.finish_reason == "error"
    good = engine.request(engine.tokenizer.encode("night falls"), Params(temperature=0, max_new_tokens=60))
    loop.submit(good)
    tokens: list[Token] = []
    while loop.busy:
        tokens += [event.token for event in loop.step() if event.token is not None]
    assert seen(tokens) == cold(engine, "night falls", good.params)
