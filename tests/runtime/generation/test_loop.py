"""The generation loop: order of requests, ways to end, and that requests do not affect each other."""

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
import pytest
from support.cases import each
from support.graphs.tiny_graph import CONTEXT

from adaptive_lm.runtime import Dial, Engine, Event, Loop, Params, Request, Token, UserError
from adaptive_lm.runtime.dial import resolve
from adaptive_lm.runtime.execution.batch import Batch
from adaptive_lm.runtime.execution.binding import Pass
from adaptive_lm.runtime.execution.step import Step, Work
from adaptive_lm.runtime.generation import loop as loop_module
from adaptive_lm.runtime.generation import prompt_parts
from adaptive_lm.runtime.generation.prefixes import longest_prefix
from adaptive_lm.runtime.generation.sampling.logprobs import token_logprob

GREEDY = Params(temperature=0, max_new_tokens=12)


@pytest.fixture
def loop(engine: Engine) -> Loop:
    return Loop(engine.session.batch(2))


def run(loop: Loop, *requests: Request) -> dict[Request, list[Token]]:
    """Submit the requests and run the loop until it has nothing to do."""
    tokens: dict[Request, list[Token]] = {one: [] for one in requests}
    for one in requests:
        loop.submit(one)
    while loop.busy:
        collect(loop.step(), tokens)
    return tokens


def collect(events: list[Event], tokens: dict[Request, list[Token]]) -> None:
    for event in events:
        if event.token is not None:
            tokens.setdefault(event.request, []).append(event.token)


def ids(tokens: Sequence[Token]) -> list[int]:
    return [token.id for token in tokens]


def alone(engine: Engine, prompt: str, params: Params = GREEDY) -> list[int]:
    return ids(list(Engine(engine.session, engine.tokenizer).generate(prompt, params)))


class Failing:
    """A sampler that takes the best token a few times, then fails."""

    seed = 0

    def __init__(self, after: int) -> None:
        self.left = after

    def choose(self, logits: Any) -> int:
        self.left -= 1
        if self.left < 0:
            raise ZeroDivisionError("of this sampler")
        return int(logits[:257].argmax())


def test_a_request_whose_sampler_fails_ends_alone(engine: Engine, loop: Loop) -> None:
    bad, good = engine.request("hello", GREEDY, sampler=Failing(3)), engine.request("moon", GREEDY)
    third = engine.request("river", GREEDY)
    tokens = run(loop, bad, good, third)
    assert (bad.status, bad.finish_reason, str(bad.error)) == ("ended", "error", "of this sampler")
    assert ids(tokens[bad]) == alone(engine, "hello")[:3]
    assert ids(tokens[good]) == alone(engine, "moon")
    assert ids(tokens[third]) == alone(engine, "river"), "the slot of the bad one serves the next"
    assert loop.free == 2


def test_logits_that_are_no_numbers_end_their_request_alone_and_leave_nothing_behind(
    engine: Engine, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = engine.request("hello", GREEDY), engine.request("moon", GREEDY)
    true = Batch.run

    def poisoned(self: Batch, work: Sequence[Work]) -> list[Step]:
        if bad.sequence is not None and bad.new_tokens == 4:
            for value in bad.sequence.cache.values.values():
                value.numpy()[:] = np.nan
        return true(self, work)

    monkeypatch.setattr(Batch, "run", poisoned)
    tokens = run(loop, bad, good)
    assert str(bad.error) == "the model gave logits that are not finite numbers"
    assert len(tokens[bad]) == 4
    assert ids(tokens[good]) == alone(engine, "moon")
    again = run(loop, engine.request("hello", GREEDY), engine.request("hello", GREEDY))
    assert [ids(one) for one in again.values()] == [alone(engine, "hello")] * 2


def test_a_pass_that_fails_for_one_sequence_is_repeated_for_the_others(
    engine: Engine, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = engine.request("hello", GREEDY), engine.request("moon", GREEDY)
    execute = Pass.execute

    def broken(self: Pass) -> None:
        if bad.sequence is not None and bad.new_tokens == 2 and self.cache is bad.sequence.cache:
            raise MemoryError("no room for the pass")
        execute(self)

    monkeypatch.setattr(Pass, "execute", broken)
    tokens = run(loop, bad, good)
    assert isinstance(bad.error, MemoryError)
    assert ids(tokens[good]) == alone(engine, "moon")


@pytest.mark.parametrize("when", [0, 1, 3])
def test_a_cancelled_request_frees_its_slot_at_once(engine: Engine, loop: Loop, when: int) -> None:
    first, other, third = (engine.request(text, GREEDY) for text in ("hello", "moon", "river"))
    tokens: dict[Request, list[Token]] = {}
    for one in (first, other, third):
        loop.submit(one)
    for _ in range(when):
        collect(loop.step(), tokens)
    loop.cancel(first)
    assert (first.status, first.finish_reason, first.sequence) == ("ended", "cancelled", None)
    assert loop.free == (1 if when else 2)
    while loop.busy:
        collect(loop.step(), tokens)
    assert first not in tokens or len(tokens[first]) == when
    assert ids(tokens[other]) == alone(engine, "moon")
    assert ids(tokens[third]) == alone(engine, "river")


def test_a_request_that_is_cancelled_during_a_pass_ends_before_the_next(engine: Engine, loop: Loop) -> None:
    request = engine.request("hello", GREEDY)

    class Cancelling(Failing):
        def choose(self, logits: Any) -> int:
            if self.left == 5:  # from another thread, as a server does
                thread = threading.Thread(target=loop.cancel, args=(request,))
                thread.start()
                thread.join()
            return super().choose(logits)

    request = engine.request("hello", GREEDY, sampler=Cancelling(9))
    tokens = run(loop, request)
    assert request.finish_reason == "cancelled"
    assert len(tokens[request]) == 5


def test_those_who_decode_wait_for_no_more_than_a_chunk_of_a_prompt(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "ALONE_GRID", 16)
    loop = Loop(engine.session.batch(3))
    decoding = engine.request("a", Params(temperature=0, max_new_tokens=30))
    loop.submit(decoding)
    loop.step()
    rows: list[list[int]] = []
    true = loop.batch.run
    monkeypatch.setattr(loop.batch, "run", lambda work: (rows.append([len(one.ids) for one in work]), true(work))[1])
    long, short = engine.request("x" * 80, GREEDY), engine.request("y" * 20, GREEDY)
    loop.submit(long)
    loop.submit(short)
    passes_of_short = 0
    while long.new_tokens == 0:
        before = decoding.new_tokens
        loop.step()
        assert decoding.new_tokens == before + 1
        passes_of_short += short.new_tokens == 0
    assert all(sum(one) - one.count(1) <= 16 for one in rows)
    assert passes_of_short < len(rows) / 2 + 2, "a short prompt does not wait for a long one"


def test_a_request_that_does_not_fit_a_slot_is_refused_before_it_waits(engine: Engine) -> None:
    loop = Loop(engine.session.batch(1, 32), most_waiting=1)
    with pytest.raises(UserError, match="found 30 prompt tokens and 12 new ones, a sequence of this batch holds 32"):
        loop.submit(engine.request("x" * 30, GREEDY))
    assert not loop.busy
    loop.submit(engine.request("x", GREEDY))
    with pytest.raises(UserError, match="found 1 requests that wait"):
        loop.submit(engine.request("y", GREEDY))
    loop.step()
    loop.submit(engine.request("y", GREEDY))


def test_a_request_is_submitted_once_and_may_be_cancelled_before(engine: Engine, loop: Loop) -> None:
    first, second = engine.request("hello", GREEDY), engine.request("moon", GREEDY)
    loop.cancel(first)
    loop.submit(first)
    loop.submit(second)
    with pytest.raises(ValueError, match="submitted before"):
        loop.submit(second)
    while loop.busy:
        assert all(event.request is second for event in loop.step())
    assert (first.finish_reason, second.finish_reason) == ("cancelled", "length")
    with pytest.raises(ValueError, match="submitted before"):
        loop.submit(second)


def test_nothing_happens_without_requests(loop: Loop) -> None:
    assert loop.step() == []
    assert not loop.busy
    assert loop.free == 2


class Guessing:
    """A drafter that knows the text, and is wrong at every third place."""

    def __init__(self, text: list[int], right: int) -> None:
        self.text, self.right = text, right
        self.asked: list[tuple[int, int]] = []
        self.verdicts: list[tuple[int, int, int]] = []

    def draft(self, ids: Sequence[int], most: int, others: int = 0) -> list[int]:
        self.asked.append((most, others))
        guess = self.text[len(ids) : len(ids) + 4]
        return [token if place < self.right else 256 - token for place, token in enumerate(guess)]

    def verified(self, drafted: int, accepted: int, rows: int, seconds: float, again: int = 0) -> None:
        assert seconds > 0
        self.verdicts.append((drafted, accepted, rows))

    def verdict(self) -> str | None:
        return None


@pytest.mark.parametrize("right", [0, 2, 4])
@pytest.mark.parametrize("temperature", [0, 0.9])
def test_a_draft_changes_how_many_passes_a_text_takes_and_not_the_text(
    engine: Engine, loop: Loop, right: int, temperature: float
) -> None:
    params = Params(temperature=temperature, seed=4, max_new_tokens=21)
    plain = list(Engine(engine.session, engine.tokenizer).generate("hello", params))
    drafter = Guessing([*engine.tokenizer.encode("hello"), *ids(plain)], right)
    request = engine.request("hello", params)
    request.make_drafter = lambda sequence: drafter
    other = engine.request("moon", GREEDY)
    tokens = run(loop, request, other)
    assert ids(tokens[request]) == ids(plain)
    assert [token.usage for token in tokens[request]] == [token.usage for token in plain]
    assert ids(tokens[other]) == alone(engine, "moon")
    assert request.drafted == sum(drafted for drafted, _, _ in drafter.verdicts)
    assert request.accepted == sum(accepted for _, accepted, _ in drafter.verdicts)
    assert all(accepted == min(right, drafted) for drafted, accepted, _ in drafter.verdicts)
    assert len(drafter.verdicts) == -(-20 // (right + 1))
    assert drafter.asked[0] == (19, 4), "the prompt of the other is read beside it"
    assert drafter.verdicts[0][2] == 1 + 4 + 4


@pytest.mark.parametrize("call", ["draft", "verified", "verdict"])
def test_a_drafter_that_fails_ends_its_request_alone(engine: Engine, loop: Loop, call: str) -> None:
    def fail(*_: object) -> None:
        raise KeyError("nothing to guess")

    drafter = Guessing([], 0)
    setattr(drafter, call, fail)
    request = engine.request([1, 2], GREEDY)
    request.make_drafter = lambda sequence: drafter
    other = engine.request("moon", GREEDY)
    tokens = run(loop, request, other)
    assert isinstance(request.error, KeyError)
    assert ids(tokens[other]) == alone(engine, "moon")


def test_the_time_of_all_tokens_is_the_time_of_the_passes(engine: Engine, loop: Loop) -> None:
    tokens = run(loop, engine.request("x" * 40, GREEDY), engine.request("moon", GREEDY))
    for own in tokens.values():
        assert all(token.seconds > 0 for token in own)


def test_memory_stays_flat_over_many_requests(engine: Engine) -> None:
    loop = Loop(engine.session.batch(4))
    process = psutil.Process()
    for turn in range(150):
        run(loop, *(engine.request(f"{turn} {index} hello", Params(max_new_tokens=4, seed=turn)) for index in range(4)))
        if turn == 30:
            before = process.memory_info().rss
    assert process.memory_info().rss - before < 8 * 2**20
    assert len(loop.batch.sequences) == 4
    assert max(sequence.position for sequence in loop.batch.sequences) < CONTEXT


def test_a_prefix_is_reused_up_to_where_the_thresholds_of_its_text_moved(engine: Engine, loop: Loop) -> None:
    low = resolve(engine.manifest, Dial(router_top_p=0.1))
    text = "the moon is far" + "." * 15
    moved = engine.request(text, Params(temperature=0, max_new_tokens=20))
    loop.submit(moved)
    while moved.new_tokens < 10:
        loop.step()
    assert moved.sequence is not None
    high, computed = moved.sequence.limits, moved.sequence.position
    moved.sequence.thresholds = low
    while loop.busy:
        loop.step()
    (ended,) = loop.batch.sequences
    assert (ended.computed_at(high), ended.computed_at(low.stacked())) == (computed, 0)
    both = moved.ids + list(b" and cold")
    assert longest_prefix(both, resolve(engine.manifest, Dial()), [ended], 1) == (ended, computed, computed)
    assert longest_prefix(both, low, [ended], 1) == (None, 0, 0)
    ended.rewind(5)
    assert (ended.computed_at(high), ended.computed_at(low.stacked())) == (5, 0)
    ended.rewind(0)
    assert ended.computed_at(low.stacked()) == 0
    ended.prefill(moved.ids[:7])
    assert (ended.computed_at(high), ended.computed_at(low.stacked())) == (0, 7)
    copy = loop.batch.fork(ended, 4)
    assert copy.computed_at(low.stacked()) == 4


@pytest.mark.parametrize("slots", [1, 2], ids=["continued", "copied"])
def test_a_request_that_reuses_a_prefix_of_a_text_whose_dial_moved_runs_at_its_own_thresholds(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    monkeypatch.setattr(loop_module, "ALONE_GRID", 16)
    loop = Loop(engine.session.batch(slots))
    first = engine.request("x" * 40, Params(temperature=0, max_new_tokens=20))
    loop.submit(first)
    loop.step()
    while first.new_tokens < 2:
        loop.step()
    assert first.sequence is not None
    first.sequence.thresholds = resolve(engine.manifest, Dial(router_top_p=0.1))
    while loop.busy:
        loop.step()
    second = engine.request("x" * 40 + "moon", GREEDY)
    tokens = run(loop, second)[second]
    assert second.cached_tokens == 32
    usage = [token.usage for token in tokens]
    whole = Engine(engine.session, engine.tokenizer)
    expected = list(whole.generate("x" * 40 + "moon", GREEDY))
    assert ids(tokens) == ids(expected)
    assert [one.experts for one in usage] == [one.usage.experts for one in expected]


@each("length", [1, 2, 63, 64, 65, 80])
def test_log_probabilities_of_a_prompt_are_those_of_the_logits_after_each_of_its_tokens(
    engine: Engine, length: int
) -> None:
    prompt = [(7 * place) % 200 for place in range(length)]
    request = engine.request(prompt, GREEDY, prompt_logprobs=3)
    loop = Loop(engine.session.batch(1))
    loop.submit(request)
    while not request.new_tokens:
        loop.step()
    logits = engine.session.sequence().prefill(prompt, num_logits=length).logits[:, : engine.tokenizer.size]
    assert len(request.prompt_scores) == length
    assert request.prompt_scores[0] == (None, {})
    for place in range(1, length):
        wanted = token_logprob(logits[place - 1], prompt[place], 3)
        assert request.prompt_scores[place].logprob == pytest.approx(wanted.logprob, abs=1e-5)
        assert request.prompt_scores[place].top_logprobs == pytest.approx(wanted.top_logprobs, abs=1e-5)


def test_log_probabilities_of_a_prompt_change_no_token(engine: Engine, loop: Loop) -> None:
    first = engine.request("hello moon", GREEDY)
    tokens = run(loop, first)
    again, scored = engine.request("hello moon", GREEDY), engine.request("hello moon", GREEDY, prompt_logprobs=0)
    other = engine.request("river", GREEDY)
    tokens |= run(loop, scored, other, again)
    assert ids(tokens[first]) == ids(tokens[scored]) == ids(tokens[again])
    assert ids(tokens[other]) == alone(engine, "river")
    assert [score.top_logprobs for score in scored.prompt_scores] == [{}] * 10
    assert again.prompt_scores == []


def test_log_probabilities_of_a_prompt_take_memory_for_a_part_of_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_parts, "SCORED_TOKENS", 16)
    monkeypatch.setattr(loop_module, "ALONE_GRID", 16)
    loop = Loop(engine.session.batch(2))
    rows = []
    true = Batch.run

    def watched(self: Batch, work: Sequence[Work]) -> list[Step]:
        rows.extend(one.num_logits for one in work)
        return true(self, work)

    monkeypatch.setattr(Batch, "run", watched)
    run(loop, engine.request(list(range(60)), GREEDY, prompt_logprobs=0))
    assert max(rows) == 16


@pytest.mark.parametrize("alternatives", [-1, 21, 1.5])
def test_a_number_of_alternatives_out_of_range_says_what_can_be_reported(engine: Engine, alternatives: Any) -> None:
    with pytest.raises(UserError, match=r"found prompt_logprobs .*, expected a whole number, from 0 to 20"):
        engine.request("hello", GREEDY, prompt_logprobs=alternatives)
    with pytest.raises(UserError, match=r"found logprobs .*, expected a whole number, from 0 to 20"):
        Params(logprobs=alternatives)


def test_a_bias_of_a_token_that_does_not_exist_is_refused(engine: Engine) -> None:
    last = engine.tokenizer.size - 1
    engine.request("hello", Params(logit_bias={last: 1}))
    with pytest.raises(UserError, match=f"found token {last + 1} in logit_bias, this model has 0 to {last}"):
        engine.request("hello", Params(logit_bias={last + 1: 1}))


def test_tokens_have_log_probabilities_only_where_requested(engine: Engine) -> None:
    plain = list(engine.generate("hello", GREEDY))
    assert {(token.logprob, token.top_logprobs) for token in plain} == {(None, None)}
    scored = list(engine.generate("hello", dataclasses.replace(GREEDY, logprobs=2)))
    assert ids(scored) == ids(plain)
    for token in scored:
        assert token.top_logprobs is not None
        assert next(iter(token.top_logprobs)) == token.id  # greedy
        assert token.top_logprobs[token.id] == token.logprob
        assert len(token.top_logprobs) == 2
