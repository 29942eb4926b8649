"""Beam search compared with a slow plain form, with all texts of a tiny vocabulary, and with single runs."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.cases import each
from support.graphs.tiny_graph import CONTEXT, EOS, TOKENS, V

from adaptive_lm.contract.errors import WrongUsageError
from adaptive_lm.runtime import BeamSearch, Engine, Found, Params, UserError
from adaptive_lm.runtime.execution.batch import Batch
from adaptive_lm.runtime.execution.binding import Pass
from adaptive_lm.runtime.execution.memory import budget as memory
from adaptive_lm.runtime.execution.step import Step
from adaptive_lm.runtime.generation.search.scores import length_divisor, log_normaliser

SMALL = [EOS, *b"abc\n"]
"""The tokens that the tiny vocabulary has; all others get no probability."""


@pytest.fixture
def own(engine: Engine) -> Engine:
    return Engine(engine.session, engine.tokenizer)


@pytest.fixture
def small(own: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Leave the model five tokens to choose from."""
    out = np.ones(V, bool)
    out[SMALL] = False
    execute = Pass.execute

    def masked(self: Pass) -> None:
        execute(self)
        self.logits[:, out] = -np.inf

    monkeypatch.setattr(Pass, "execute", masked)
    return own


def logprobs_after(engine: Engine, ids: list[int]) -> Any:
    """Return the log-probabilities of the next token, computed from nothing."""
    logits = engine.session.sequence(capacity=len(ids)).prefill(ids).logits[0, :TOKENS].astype(np.float64)
    return logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())


def plain(
    engine: Engine, prompt: list[int], most: int, beams: int, margin: float, penalty: float
) -> list[tuple[list[int], float, float]]:
    """Search as the docstring says, in the plainest way: (ids, log-probability, score), the best first."""
    live: list[tuple[list[int], float]] = [([], 0.0)]
    ended: list[tuple[list[int], float, float]] = []

    def score(ids: list[int], logprob: float) -> float:
        return logprob / ((5 + len(ids)) / 6) ** penalty

    while live:
        every = []
        for ids, logprob in live:
            after = logprobs_after(engine, prompt + ids)
            every += [([*ids, token], logprob + after[token]) for token in range(TOKENS) if after[token] > -math.inf]
        every = sorted(every, key=lambda one: -one[1])[: beams - len(ended)]
        every = [one for one in every if one[1] >= every[0][1] - margin]
        live = []
        for ids, logprob in every:
            if ids[-1] == EOS or len(ids) == most:
                ended.append((ids, logprob, score(ids, logprob)))
            else:
                live.append((ids, logprob))
        if live and ended and max(one[2] for one in ended) >= live[0][1] / ((5 + most) / 6) ** penalty:
            break
    return sorted(ended, key=lambda one: -one[2])


def found(search: BeamSearch) -> Found:
    tokens = list(search)
    assert tokens == list(search.found.best.tokens), "what was streamed is the best text"
    return search.found


def ids_of(result: Found) -> list[list[int]]:
    return [[token.id for token in one.tokens] for one in result.hypotheses]


@each("penalty", [0.0, 0.6, 2.0])
@each("prompt", ["hello", "a"])
def test_a_beam_as_wide_as_all_texts_finds_the_most_probable_of_all(small: Engine, prompt: str, penalty: float) -> None:
    most, start = 4, small.tokenizer.encode(prompt)
    texts = []
    for length in range(1, most + 1):
        for text in itertools.product(SMALL, repeat=length):
            if EOS in text[:-1] or (text[-1] != EOS and length < most):
                continue
            logprob = 0.0
            for place, token in enumerate(text):
                logprob += logprobs(small, tuple(start + list(text[:place])))[token]
            texts.append((logprob / ((5 + length) / 6) ** penalty, list(text)))
    best = max(texts, key=lambda one: one[0])
    result = found(small.search(prompt, Params(max_new_tokens=most), beams=len(SMALL) ** most, length_penalty=penalty))
    assert ids_of(result)[0] == best[1]
    assert result.best.score == pytest.approx(best[0], rel=1e-12)


_known: dict[tuple[int, ...], Any] = {}


def logprobs(engine: Engine, ids: tuple[int, ...]) -> Any:
    if ids not in _known:
        _known[ids] = logprobs_after(engine, list(ids))
    return _known[ids]


@pytest.mark.parametrize("penalty", [0.0, 0.6])
@pytest.mark.parametrize("margin", [math.inf, 1.5, 0.3])
@pytest.mark.parametrize("beams", [1, 2, 5])
@pytest.mark.parametrize("vocabulary", ["own", "small"])
def test_it_finds_what_the_plain_form_finds(
    request: pytest.FixtureRequest, vocabulary: str, beams: int, margin: float, penalty: float
) -> None:
    engine: Engine = request.getfixturevalue(vocabulary)
    for prompt in ("m", "the moon"):
        wanted = plain(engine, engine.tokenizer.encode(prompt), 8, beams, margin, penalty)
        search = engine.search(
            prompt,
            Params(max_new_tokens=8),
            beams=beams,
            beam_margin=None if margin == math.inf else margin,
            length_penalty=penalty,
        )
        result = found(search)
        assert ids_of(result) == [ids for ids, _, _ in wanted]
        assert [one.logprob for one in result.hypotheses] == pytest.approx([one[1] for one in wanted], rel=1e-12)
        assert [one.score for one in result.hypotheses] == pytest.approx([one[2] for one in wanted], rel=1e-12)
        reasons = ["eos" if ids[-1] == EOS else "length" for ids, _, _ in wanted]
        assert [one.finish_reason for one in result.hypotheses] == reasons
        assert search.request.finish_reason == reasons[0]


@pytest.mark.parametrize("margin", [None, 0.5])
def test_one_beam_is_the_text_of_temperature_0_with_its_usage(own: Engine, margin: float | None) -> None:
    for prompt in ("hello", "moon", "z" * 40):
        for stop in ((), ("\x0c",), ("a", "b", "c")):
            plain_text = list(own.generate(prompt, Params(temperature=0, max_new_tokens=30, stop=stop)))
            search = own.search(prompt, Params(max_new_tokens=30, stop=stop), beams=1, beam_margin=margin)
            tokens = list(search)
            assert [(one.id, one.text, one.usage) for one in tokens] == [
                (one.id, one.text, one.usage) for one in plain_text
            ]
            assert search.found.flops_ratio == pytest.approx(1)


def test_every_beam_has_the_logits_of_a_run_of_its_own(own: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[tuple[list[int], Any]] = []
    run = Batch.run

    def recorded(self: Batch, work: Any) -> list[Step]:
        steps = run(self, work)
        passes.extend(
            (list(one.sequence.ids), step.logits[-1]) for one, step in zip(work, steps, strict=True) if one.num_logits
        )
        return steps

    monkeypatch.setattr(Batch, "run", recorded)
    list(own.search("hello", Params(max_new_tokens=12), beams=5))
    monkeypatch.undo()
    assert len(passes) > 40
    prompt = len(own.tokenizer.encode("hello"))
    for ids, logits in passes:
        single = own.session.sequence(capacity=len(ids))
        step = single.prefill(ids[:prompt])
        for token in ids[prompt:]:
            step = single.step(token)
        np.testing.assert_array_equal(logits, step.logits[-1])


def test_equally_probable_texts_rank_by_beam_and_then_by_id(own: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    execute = Pass.execute

    def flat(self: Pass) -> None:
        execute(self)
        self.logits[:] = 0

    monkeypatch.setattr(Pass, "execute", flat)
    result = found(own.search("hello", Params(max_new_tokens=2), beams=3, length_penalty=0))
    assert ids_of(result) == [[0, 0], [0, 1], [0, 2]]


def test_a_margin_lets_the_width_follow_how_unsure_the_model_is(own: Engine) -> None:
    params = Params(max_new_tokens=20)
    computed = []
    for margin in (0.0, 0.2, 0.7, 2.0, None):
        result = found(own.search("the moon", params, beams=6, beam_margin=margin))
        computed.append(result.effort.tokens)
        assert result.effort.tokens <= 1 + 6 * 19
    assert computed == sorted(computed)
    assert computed[0] == 20, "with a margin of 0 only equally probable texts stay"
    assert computed[0] < computed[2] < computed[4]


def test_the_compute_of_dropped_texts_counts(own: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    flops = []
    run = Batch.run

    def recorded(self: Batch, work: Any) -> list[Step]:
        steps = run(self, work)
        flops.extend(step.usage.executed_flops for step in steps)
        return steps

    monkeypatch.setattr(Batch, "run", recorded)
    result = found(own.search("hello", Params(max_new_tokens=30), beams=4))
    assert result.effort.tokens == len(flops)
    assert result.effort.executed_flops == pytest.approx(sum(flops))
    alone = sum(token.usage.executed_flops for token in result.best.tokens)
    assert result.flops_ratio == pytest.approx(sum(flops) / alone)
    assert 3 < result.flops_ratio < 4.2
    assert 0 < sum(token.seconds for token in result.best.tokens) <= result.effort.seconds


def test_a_stop_string_ends_one_text_and_not_the_others(own: Engine) -> None:
    params = Params(max_new_tokens=12)
    free = found(own.search("hello", params, beams=4))
    stop = free.best.text[3:6]
    result = found(own.search("hello", Params(max_new_tokens=12, stop=(stop,)), beams=4, length_penalty=0.6))
    assert any(one.finish_reason == "stop" for one in result.hypotheses)
    assert all(stop not in one.text for one in result.hypotheses)
    for one in result.hypotheses:
        alone = own.tokenizer.decode([token.id for token in one.tokens])
        assert alone.startswith(one.text)


def test_texts_with_characters_of_several_bytes_stay_apart(own: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    execute = Pass.execute
    letters = ["é", "è", "日", "曜"]
    after: dict[int, list[int]] = {}
    for letter in letters:
        data = letter.encode()
        for first, second in itertools.pairwise([0, *data]):
            after.setdefault(first, []).append(second)

    def spell(self: Pass) -> None:
        execute(self)
        self.logits[:] = -30
        for row, token in enumerate(self.ids[-len(self.logits) :]):
            for rank, follower in enumerate(after.get(int(token), after[0])):
                self.logits[row, follower] = 5 - 0.1 * rank

    monkeypatch.setattr(Pass, "execute", spell)
    result = found(own.search("a", Params(max_new_tokens=5), beams=6))
    for one in result.hypotheses:
        assert one.text == own.tokenizer.decode([token.id for token in one.tokens])
    assert {one.text for one in result.hypotheses} == {"日è", "日é", "曜è", "曜é", "日\ufffd"}, "the last one is cut"


def test_tokens_are_streamed_as_soon_as_all_texts_share_them(own: Engine) -> None:
    search = own.search("the moon", Params(max_new_tokens=20), beams=3, beam_margin=0.5)
    steps = [search.found.effort.steps for _ in search]
    assert len(steps) == 20
    assert steps[0] < 20, "the first token comes before the end"
    assert steps[-1] == 20


def test_it_ends_when_no_text_can_win_any_more(small: Engine) -> None:
    early = small.search("a", Params(max_new_tokens=60), beams=3, length_penalty=0)
    result = found(early)
    late = plain(small, small.tokenizer.encode("a"), 60, 3, math.inf, 0)
    assert ids_of(result) == [ids for ids, _, _ in late]
    assert result.effort.steps < 60


def test_it_goes_to_the_end_of_the_context(own: Engine) -> None:
    prompt = "x" * (CONTEXT - 7)
    result = found(own.search(prompt, Params(max_new_tokens=7), beams=3))
    assert {len(one.tokens) for one in result.hypotheses if one.finish_reason == "length"} == {7}
    with pytest.raises(UserError, match="this model's context is 96"):
        own.search(prompt, Params(max_new_tokens=8))


def test_it_runs_at_the_setting_of_the_dial(own: Engine) -> None:
    cheap = Params(max_new_tokens=10, router_top_p=0.01, depth_threshold=1.0, exit_threshold=0.0)
    result = found(own.search("hello", cheap, beams=3))
    greedy = list(own.generate("hello", Params(**{**vars(cheap), "temperature": 0})))
    one = found(own.search("hello", cheap, beams=1))
    assert [token.usage for token in one.best.tokens] == [token.usage for token in greedy]
    assert all(token.usage.flops_share < 0.7 for token in result.best.tokens)


def test_caches_that_do_not_fit_are_refused_before_anything_is_computed(
    own: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "UNASKED_BYTES", 0)
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    monkeypatch.setattr(Batch, "run", lambda *_: pytest.fail("nothing is computed"))
    search = own.search("hello", beams=50)
    with pytest.raises(
        UserError, match=r"found 50 sequences of 96 tokens, .*ask for fewer at a time \(--batch, --beams\)"
    ):
        next(search)
    with pytest.raises(UserError, match="found 50 sequences"):
        next(search)


def test_logits_that_are_no_numbers_end_the_search(own: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    execute = Pass.execute

    def broken(self: Pass) -> None:
        execute(self)
        self.logits[-1, 7] = np.nan

    monkeypatch.setattr(Pass, "execute", broken)
    with pytest.raises(ArithmeticError, match="not finite"):
        list(own.search("hello"))


def test_another_generation_ends_it_and_it_ends_another(own: Engine) -> None:
    search = own.search("hello", Params(max_new_tokens=30), beams=1)
    next(search)
    other = own.generate("moon", Params(max_new_tokens=5))
    next(other)
    with pytest.raises(RuntimeError, match="another generation of this engine began"):
        next(search)
    next(own.search("hello"))
    with pytest.raises(RuntimeError, match="another generation of this engine began"):
        list(other)


def test_an_interrupted_search_has_the_texts_so_far_and_begins_no_second_time(
    own: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = own.search("hello", Params(max_new_tokens=20), beams=1)
    for _ in range(5):
        next(search)
    monkeypatch.setattr(Batch, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(search)
    assert list(search) == []
    assert len(search.found.best.tokens) == 5
    assert search.found.best.finish_reason is None


def interrupt(*_: Any) -> Iterator[Any]:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beams": 0}, "found beams 0, expected a whole number, at least 1"),
        ({"beams": 1.5}, "found beams 1.5"),
        ({"beam_margin": -1}, "found beam_margin -1, expected a number from 0"),
        ({"beam_margin": math.nan}, "found beam_margin nan"),
        ({"length_penalty": -0.1}, "found length_penalty -0.1, expected a number from 0 to 10"),
        ({"params": Params(top_k=3)}, "found top_k 3 with a beam search, which draws nothing"),
        ({"params": Params(seed=3)}, "found seed 3 with a beam search"),
        ({"params": Params(temperature=1.1)}, "found temperature 1.1 with a beam search"),
        ({"params": Params(repetition_penalty=1.1)}, "found repetition_penalty 1.1 with a beam search"),
        ({"params": Params(speculate="ngram")}, "found speculate ngram with a beam search"),
    ],
)
def test_settings_without_a_meaning_are_refused(own: Engine, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(WrongUsageError, match=message):
        own.search("hello", **settings)


def test_the_divisor_is_that_of_the_paper() -> None:
    assert length_divisor(1, 0.6) == 1
    assert length_divisor(7, 0.5) == pytest.approx(math.sqrt(2))
    assert length_divisor(100, 0) == 1


def test_log_probabilities_are_exact_at_any_size_of_logits() -> None:
    assert log_normaliser(np.array([1e30, 1e30, -1e30], np.float32)) == np.float32(1e30)
    assert log_normaliser(np.array([0, math.log(3)], np.float32)) == pytest.approx(math.log(4), rel=1e-7)
    assert log_normaliser(np.array([2, -np.inf], np.float32)) == 2
    for wrong in ([np.nan, 0], [np.inf, 0], [-np.inf, -np.inf]):
        with pytest.raises(ArithmeticError, match="not finite"):
            log_normaliser(np.array(wrong, np.float32))


def test_log_probabilities_of_the_tokens_are_reported_where_they_are_requested(own: Engine) -> None:
    result = found(own.search("hello", Params(max_new_tokens=9, logprobs=2), beams=3))
    for one in result.hypotheses:
        assert sum(token.logprob or 0 for token in one.tokens) == pytest.approx(one.logprob, rel=1e-6)
        assert all(len(token.top_logprobs or {}) == 2 for token in one.tokens)
    assert found(own.search("hello", Params(max_new_tokens=9), beams=3)).best.tokens[0].logprob is None
