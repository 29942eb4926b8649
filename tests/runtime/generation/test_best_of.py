"""Best of n: the texts are those of single runs, ranked by a score, and the prompt is computed once."""

import math
from typing import Any

import numpy as np
import pytest
from support.graphs.tiny_graph import TOKENS

from adaptive_lm.contract.errors import WrongUsageError
from adaptive_lm.runtime import Engine, Hypothesis, Params, UserError
from adaptive_lm.runtime.execution.batch import Batch
from adaptive_lm.runtime.execution.binding import Pass
from adaptive_lm.runtime.execution.step import Step

PARAMS = Params(seed=5, max_new_tokens=12, temperature=1.2, top_k=30)


@pytest.fixture
def own(engine: Engine) -> Engine:
    return Engine(engine.session, engine.tokenizer)


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_the_texts_are_those_of_single_runs_with_the_seeds_that_follow(own: Engine, slots: int) -> None:
    result = own.best_of("hello", PARAMS, n=5, slots=slots)
    assert sorted(one.seed or 0 for one in result.hypotheses) == [5, 6, 7, 8, 9]
    for one in result.hypotheses:
        params = Params(**{**vars(PARAMS), "seed": one.seed})
        single = list(own.generate("hello", params))
        assert [(token.id, token.text, token.usage) for token in one.tokens] == [
            (token.id, token.text, token.usage) for token in single
        ]
    assert result.request.seed == result.best.seed
    assert result.request.ids[-12:] == [token.id for token in result.best.tokens]


def test_they_rank_by_the_mean_log_probability_of_the_model(own: Engine) -> None:
    result = own.best_of("hello", PARAMS, n=6)
    prompt = own.tokenizer.encode("hello")
    for one in result.hypotheses:
        ids = prompt + [token.id for token in one.tokens]
        logits = own.session.sequence().prefill(ids, num_logits=len(ids)).logits[:, :TOKENS].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        sums = sum(logprobs[place - 1, ids[place]] for place in range(len(prompt), len(ids)))
        assert one.logprob == pytest.approx(sums, rel=1e-6)
        assert one.score == pytest.approx(sums / len(one.tokens), rel=1e-6)
    scores = [one.score for one in result.hypotheses]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 6


def test_a_scorer_decides_and_equal_scores_rank_by_seed(own: Engine) -> None:
    seen: list[Hypothesis] = []

    def vowels(text: Hypothesis) -> float:
        seen.append(text)
        return (text.seed or 0) % 2

    result = own.best_of("hello", PARAMS, n=4, scorer=vowels)
    assert [one.seed for one in result.hypotheses] == [5, 7, 6, 8]
    assert [one.score for one in result.hypotheses] == [1, 1, 0, 0]
    assert [one.seed for one in seen] == [5, 6, 7, 8]
    assert all(one.score == one.logprob / 12 for one in seen), "a scorer sees the mean log-probability"


def test_the_score_of_a_scorer_must_be_a_number(own: Engine) -> None:
    with pytest.raises(ValueError, match="found the score nan of the text with seed 5, expected a number"):
        own.best_of("hello", PARAMS, n=2, scorer=lambda _: math.nan)


def test_a_seed_that_is_not_given_is_drawn_and_reported(own: Engine) -> None:
    first = own.best_of("hello", Params(max_new_tokens=8), n=3)
    seeds = [one.seed or 0 for one in first.hypotheses]
    assert max(seeds) - min(seeds) == 2
    again = own.best_of("hello", Params(max_new_tokens=8, seed=min(seeds)), n=3)
    assert [one.text for one in again.hypotheses] == [one.text for one in first.hypotheses]


def test_the_highest_seed_is_followed_by_zero(own: Engine) -> None:
    result = own.best_of("hello", Params(max_new_tokens=2, seed=2**64 - 1), n=2)
    assert {one.seed for one in result.hypotheses} == {2**64 - 1, 0}


def test_one_text_may_have_the_temperature_0(own: Engine) -> None:
    params = Params(temperature=0, max_new_tokens=6)
    assert own.best_of("hello", params, n=1).best.text == "".join(one.text for one in own.generate("hello", params))
    with pytest.raises(WrongUsageError, match="found temperature 0 with best-of 2, which gives 2 times the same text"):
        own.best_of("hello", params, n=2)


@pytest.mark.parametrize("n", [0, -1, 1.5])
def test_a_number_of_texts_must_be_one(own: Engine, n: Any) -> None:
    with pytest.raises(WrongUsageError, match=f"found best_of {n}, expected a whole number, at least 1"):
        own.best_of("hello", n=n)


def test_a_prompt_that_does_not_fit_is_refused(own: Engine) -> None:
    with pytest.raises(UserError, match="this model's context is 96"):
        own.best_of("x" * 90, Params(max_new_tokens=20), n=2)


def test_the_compute_of_all_texts_counts(own: Engine) -> None:
    result = own.best_of("hello", PARAMS, n=4)
    flops = [sum(token.usage.executed_flops for token in one.tokens) for one in result.hypotheses]
    assert result.effort.executed_flops == pytest.approx(sum(flops))
    assert result.flops_ratio == pytest.approx(sum(flops) / flops[0])
    assert result.effort.tokens == sum(len(one.tokens) for one in result.hypotheses)


def test_what_fails_is_raised_and_frees_all_slots(own: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    execute = Pass.execute
    passes = []

    def broken(self: Pass) -> None:
        execute(self)
        passes.append(1)
        if len(passes) == 9:
            self.logits[:] = np.nan

    monkeypatch.setattr(Pass, "execute", broken)
    with pytest.raises(ArithmeticError, match="not finite"):
        own.best_of("hello", PARAMS, n=3)
    monkeypatch.undo()
    assert own.best_of("hello", PARAMS, n=3).best.text


def test_an_interruption_frees_all_slots(own: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Batch.run
    passes = []

    def interrupted(self: Batch, work: Any) -> list[Step]:
        passes.append(1)
        if len(passes) == 6:
            raise KeyboardInterrupt
        return run(self, work)

    monkeypatch.setattr(Batch, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        own.best_of("hello", PARAMS, n=3)
    monkeypatch.undo()
    loop = own.begin([])
    assert not loop.busy


class OnlyLetters:
    """A grammar, and its mask, that allows `a` and `b`."""

    ended = False

    def mask(self) -> "OnlyLetters":
        return self

    def allowed(self) -> Any:
        bits = np.zeros(-(-TOKENS // 32), np.uint32)
        for token in b"ab":
            bits[token // 32] |= np.uint32(1 << token % 32)
        return bits

    def accept(self, token: int) -> None:
        assert token in b"ab"


def test_every_text_matches_the_grammar_and_ranks_by_the_log_probabilities_of_the_model(own: Engine) -> None:
    result = own.best_of("hello", PARAMS, n=4, grammar=OnlyLetters())
    assert all(set(one.text) <= {"a", "b"} for one in result.hypotheses)
    assert result.best.logprob == pytest.approx(sum(token.logprob or 0 for token in result.best.tokens))
    assert result.best.score < -1, "the model, without the mask, finds these letters improbable"
