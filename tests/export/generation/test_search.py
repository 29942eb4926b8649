"""Beam search and best-of on the graphs of both targets: bits of single runs, in every precision and mechanism."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.operators.our_library import needs_library

from adaptive_lm.runtime import Engine, Params, load
from adaptive_lm.runtime.execution.batch import Batch
from adaptive_lm.runtime.execution.step import Step

PROMPT = "the moon turns over a stone. night falls under the river. " * 3
GRAPHS = [
    pytest.param(("portable", "fp32"), id="portable-fp32"),
    *(pytest.param(("cpu", name), id=f"cpu-{name}", marks=needs_library) for name in ("fp32", "int8", "int4")),
]


@pytest.fixture(params=GRAPHS)
def engine(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Engine:
    target, precision = request.param
    return load(folders[precision], device="cpu", target=target, threads=1, verify=False)


@pytest.mark.parametrize("margin", [None, 2.0])
def test_every_beam_has_the_bits_and_the_routes_of_a_run_of_its_own(
    engine: Engine, margin: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[int], Step]] = []
    run = Batch.run

    def recorded(self: Batch, work: Any) -> list[Step]:
        steps = run(self, work)
        seen.extend((list(one.sequence.ids), step) for one, step in zip(work, steps, strict=True) if one.num_logits)
        return steps

    monkeypatch.setattr(Batch, "run", recorded)
    prompt = engine.tokenizer.encode(PROMPT)
    search = engine.search(prompt, Params(max_new_tokens=25), beams=4, beam_margin=margin)
    tokens = list(search)
    monkeypatch.undo()
    assert [token.id for token in tokens] == [token.id for token in search.found.best.tokens]
    assert len(seen) > 25
    capacity = len(prompt) + 25
    for ids, step in seen:
        single = engine.session.sequence(capacity=capacity)
        for begin in range(0, len(prompt), 128):
            alone = single.prefill(prompt[begin : begin + 128])
        for token in ids[len(prompt) :]:
            alone = single.step(token)
        np.testing.assert_array_equal(step.logits[-1], alone.logits[-1])
        assert step.usage == alone.usage


def test_one_beam_is_the_text_of_temperature_0(engine: Engine) -> None:
    greedy = list(engine.generate(PROMPT, Params(temperature=0, max_new_tokens=60)))
    beam = list(engine.search(PROMPT, Params(max_new_tokens=60), beams=1))
    assert [(one.id, one.text, one.usage) for one in beam] == [(one.id, one.text, one.usage) for one in greedy]


def test_more_beams_find_a_text_at_least_as_probable_here(engine: Engine) -> None:
    params = Params(max_new_tokens=30)
    found = []
    for beams in (1, 4):
        search = engine.search(PROMPT, params, beams=beams, length_penalty=0)
        list(search)
        found.append(search.found.best)
    assert found[1].logprob >= found[0].logprob
    assert math.isfinite(found[1].logprob)


def test_the_texts_of_best_of_are_those_of_single_runs(engine: Engine) -> None:
    params = Params(seed=3, max_new_tokens=20)
    result = engine.best_of(PROMPT, params, n=5, slots=3)
    for one in result.hypotheses:
        fresh = Engine(engine.session, engine.tokenizer)
        single = list(fresh.generate(PROMPT, Params(seed=one.seed, max_new_tokens=20)))
        assert [(token.id, token.usage) for token in one.tokens] == [(token.id, token.usage) for token in single]
