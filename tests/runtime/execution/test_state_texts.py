"""Texts of models with states: drafts, reuse of prefixes and search give the texts of plain decoding."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.graphs.state_graph import write_hybrid

from adaptive_lm.runtime import Dial, Engine, Generation, Loop, Params, Request, Token, load
from adaptive_lm.runtime.dial import resolve
from adaptive_lm.runtime.evaluation.harness.continuations import Continuation, ContinuationScorer
from adaptive_lm.runtime.execution.binding import Pass
from adaptive_lm.runtime.execution.memory.states import SPACING
from adaptive_lm.runtime.generation.prompt_parts import LEAST_COPIED
from adaptive_lm.runtime.speculation.acceptance import Acceptance
from adaptive_lm.runtime.speculation.dial_drafter import Setting
from adaptive_lm.runtime.speculation.ngram import NgramDrafter, Plan
from adaptive_lm.runtime.speculation.pass_costs import MAX_ROWS, SAMPLES, PassCosts, repeat_loss, repeat_seconds

GREEDY = Params(temperature=0, max_new_tokens=30, speculate="off")
PROMPT = "the moon turns over a stone.\nnight falls"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool, bool], Engine]:
    """Return a function that opens a model whose graph mixes sequences or not, with attention or without, anew."""
    place, folders = tmp_path_factory.mktemp("texts"), dict[tuple[bool, bool], Path]()

    def engine(mixes: bool = True, attention: bool = True) -> Engine:
        key = mixes, attention
        if key not in folders:
            folders[key] = write_hybrid(place / f"{mixes}-{attention}" / "model", mixes=mixes, attention=attention)
        return load(folders[key], device="cpu", threads=1, verify=False)

    return engine


class Endless:
    """A sampler that draws, but never the end of the text."""

    seed = 0

    def __init__(self) -> None:
        self._random = np.random.default_rng(3)

    def choose(self, logits: Any) -> int:
        return int((logits[:256] + 0.5 * self._random.gumbel(size=256)).argmax())


class Guessing:
    """Drafts the known text with errors: up to `longest` tokens, of which each is wrong with probability `errors`."""

    def __init__(self, text: Sequence[int], errors: float, longest: int = 12) -> None:
        self.text, self.errors, self.longest = text, errors, longest
        self.passes: list[tuple[int, int, int, int]] = []
        self._draw = random.Random(1)

    def draft(self, ids: Sequence[int], most: int, others: int = 0) -> list[int]:
        count = min(self._draw.randint(0, self.longest), most)
        draft = list(self.text[len(ids) : len(ids) + count])
        return [(token + 1) % 200 if self._draw.random() < self.errors else token for token in draft]

    def verified(self, drafted: int, accepted: int, rows: int, seconds: float, again: int = 0) -> None:
        assert seconds > 0
        self.passes.append((drafted, accepted, rows, again))

    def verdict(self) -> None:
        pass


def ids(tokens: Sequence[Token]) -> list[int]:
    return [token.id for token in tokens]


def run(loop: Loop, *requests: Request) -> dict[Request, list[Token]]:
    tokens: dict[Request, list[Token]] = {one: [] for one in requests}
    for one in requests:
        loop.submit(one)
    while loop.busy:
        for event in loop.step():
            assert event.request.error is None
            if event.token is not None:
                tokens[event.request].append(event.token)
    return tokens


def alone(engine: Engine, prompt: str, params: Params = GREEDY) -> list[int]:
    return ids(list(Engine(engine.session, engine.tokenizer).generate(prompt, params)))


@pytest.mark.parametrize(("count", "errors"), [(300, 0.0), (2000, 0.15), (300, 1.0)])
@pytest.mark.parametrize("attention", [True, False])
def test_tokens_with_drafts_are_those_of_plain_decoding(
    opened: Callable[..., Engine], attention: bool, count: int, errors: float
) -> None:
    engine, params = opened(attention=attention), Params(temperature=0, max_new_tokens=count, speculate="off")
    plain = list(engine.generate(PROMPT, params, sampler=Endless()))
    assert len(plain) == count
    assert len(set(ids(plain))) > 30, "the text does not merely repeat"
    drafter = Guessing(engine.tokenizer.encode(PROMPT) + ids(plain), errors)
    request = engine.request(PROMPT, params, sampler=Endless())
    request.make_drafter = lambda _: drafter
    tokens = list(Generation(engine.begin, request))
    assert ids(tokens) == ids(plain)
    assert [token.usage for token in tokens] == [token.usage for token in plain]
    assert all(rows == 1 + drafted + again for drafted, _, rows, again in drafter.passes)
    for before, after in zip(drafter.passes, drafter.passes[1:], strict=False):
        drafted, accepted, _, _ = before
        wrong = accepted < drafted
        assert after[3] == (1 + accepted) * wrong, "what was right is computed again"
        assert not (wrong and after[0]), "beside nothing that is guessed"
    assert (request.accepted == request.drafted) == (errors == 0)


@pytest.mark.parametrize("speculate", ["ngram", "dial"])
def test_each_way_to_guess_gives_the_same_text(opened: Callable[..., Engine], speculate: Any) -> None:
    engine, other = opened(), opened()
    for rows in range(1, MAX_ROWS + 1):
        for _ in range(SAMPLES):
            other.speculation.costs.add(rows, 1e-6 * (1 + 0.01 * rows))
    drafted = 0
    for prompt in (PROMPT, "a " * 40, PROMPT * 5):
        params = Params(temperature=0, max_new_tokens=300, speculate="off")
        plain = list(engine.generate(prompt, params, sampler=Endless()))
        guessing = Params(temperature=0, max_new_tokens=300, speculate=speculate)
        generation = other.generate(prompt, guessing, sampler=Endless())
        tokens = list(generation)
        assert ids(tokens) == ids(plain)
        assert [token.usage for token in tokens] == [token.usage for token in plain]
        drafted += generation.request.drafted
    assert drafted > 0


def test_a_draft_among_neighbours_changes_none_of_them(opened: Callable[..., Engine]) -> None:
    engine = opened()
    prompts = [PROMPT, "moon", "a " * 30, "x" * 100]
    plain = {prompt: alone(engine, prompt) for prompt in prompts}
    loop, requests = Loop(engine.session.batch(3)), []
    for prompt in prompts:
        request = engine.request(prompt, GREEDY)
        drafter = Guessing(engine.tokenizer.encode(prompt) + plain[prompt], 0.3, 6)
        request.make_drafter = lambda _, own=drafter: own  # type: ignore[misc]
        requests.append(request)
    tokens = run(loop, *requests)
    assert [ids(tokens[one]) for one in requests] == [plain[prompt] for prompt in prompts]


def test_the_same_prompt_again_computes_its_last_token_only(opened: Callable[..., Engine]) -> None:
    engine = opened()
    prompt = PROMPT * 6
    loop = Loop(engine.session.batch(3))
    first, again, third = (engine.request(prompt, GREEDY) for _ in range(3))
    tokens = run(loop, first)
    tokens |= run(loop, again)
    tokens |= run(loop, third)
    assert (first.cached_tokens, again.cached_tokens, third.cached_tokens) == (0, *[len(prompt) - 1] * 2)
    assert [ids(own) for own in tokens.values()] == [alone(engine, prompt)] * 3


def test_a_text_that_goes_on_is_continued_from_where_it_ended(opened: Callable[..., Engine]) -> None:
    engine = opened()
    loop = Loop(engine.session.batch(1))
    first = engine.request(PROMPT, GREEDY)
    run(loop, first)
    text = engine.tokenizer.decode(first.ids)
    more = engine.request([*first.ids, *b" and on"], GREEDY)
    tokens = run(loop, more)[more]
    assert more.cached_tokens == len(first.ids) - 1
    assert text.startswith(PROMPT)
    assert ids(tokens) == ids(list(opened().generate([*first.ids, *b" and on"], GREEDY)))


def test_a_chat_that_takes_a_turn_back_reads_little_again(opened: Callable[..., Engine]) -> None:
    """Each turn is a prompt that goes on from the text before; the last question is then another one."""
    engine = opened(attention=False)
    loop, ids_so_far, turns = Loop(engine.session.batch(1)), list(b"hello. " * 20), []
    for question in (b"why is the moon round? " * 6, b"and the sun? " * 8, b"how far is it? " * 5):
        before = len(ids_so_far)
        request = engine.request([*ids_so_far, *question], GREEDY)
        turns.append((before, run(loop, request)[request]))
        if before > 140:
            assert request.cached_tokens >= before - 1, "the answer before is in memory"
        ids_so_far = request.ids
    before = turns[-1][0]
    other = engine.request([*ids_so_far[:before], *b"what is a stone?"], GREEDY)
    tokens = run(loop, other)[other]
    assert before - 2 * SPACING < other.cached_tokens <= before
    assert ids(tokens) == ids(list(opened(attention=False).generate(other.ids[: other.prompt_tokens], GREEDY)))


def test_continuations_of_one_context_are_scored_from_a_copy_of_its_states(opened: Callable[..., Engine]) -> None:
    engine = opened()
    point = resolve(engine.manifest, Dial())
    context = tuple(b"the moon turns over a stone. " * 10)
    wanted = [Continuation(context, tuple(end)) for end in (b"it falls", b"night", b"a river")]
    scorer = ContinuationScorer(engine, point)
    together = scorer.score(wanted)
    assert scorer.tokens_read < len(context) + 60, "the context is read once"
    for one, result in zip(wanted, together, strict=True):
        (own,) = ContinuationScorer(engine, point).score([one])
        assert (own.logprob, own.greedy) == (pytest.approx(result.logprob, abs=1e-5), result.greedy)


def test_where_two_prompts_part_a_copy_stays_for_the_third(opened: Callable[..., Engine]) -> None:
    engine = opened()
    system = "you are a stone under the moon. answer briefly. " * 6  # 288 tokens
    prompts = [system + one for one in ("name yourself, and the place!", "what is rain made of?", "how come?")]
    loop = Loop(engine.session.batch(3))
    requests = [engine.request(prompt, GREEDY) for prompt in prompts]
    tokens: dict[Request, list[Token]] = {}
    for request in requests:
        tokens |= run(loop, request)
    assert [one.cached_tokens for one in requests][2] == len(system)
    assert [ids(tokens[one]) for one in requests] == [alone(engine, prompt) for prompt in prompts]


def test_a_prompt_whose_slots_are_reused_goes_back_to_a_copy(opened: Callable[..., Engine]) -> None:
    """One slot: the text that ended gives up its slot and is cut to the beginning that both share."""
    engine = opened()
    loop = Loop(engine.session.batch(1))
    for prompt in ("a" * 200, "a" * 150 + "b" * 50, "a" * 150 + "c" * 9, "b", "a" * 200):
        request = engine.request(prompt, GREEDY)
        assert ids(run(loop, request)[request]) == alone(engine, prompt)


def test_a_graph_that_computes_each_alone_reuses_a_prefix_at_its_grid(
    opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(mixes=False)
    loop = Loop(engine.session.batch(2))
    prompt = "x" * 300
    first = engine.request(prompt, GREEDY)
    run(loop, first)
    second = engine.request(prompt + "moon", GREEDY)
    tokens = run(loop, second)[second]
    assert second.cached_tokens == 256
    assert ids(tokens) == alone(engine, prompt + "moon")


@pytest.mark.parametrize("mixes", [True, False])
def test_many_texts_and_searches_are_those_of_each_alone(opened: Callable[..., Engine], mixes: bool) -> None:
    engine = opened(mixes=mixes)
    prompts = [PROMPT, PROMPT + "!", "moon", "a " * 80, "a " * 80 + "b"]
    params = Params(temperature=0.8, seed=3, max_new_tokens=40, speculate="off")
    for one, prompt in zip(engine.generate_many(prompts, params, slots=2), prompts, strict=True):
        assert one.error is None
        assert ids(one.tokens) == alone(engine, prompt, params)
    best = engine.best_of(PROMPT * 4, params, n=3)
    assert len(best.hypotheses) == 3
    for index, text in enumerate(sorted(best.hypotheses, key=lambda one: one.seed or 0)):
        own = Params(temperature=0.8, seed=3 + index, max_new_tokens=40, speculate="off")
        assert ids(text.tokens) == alone(engine, PROMPT * 4, own)


@pytest.mark.parametrize("mixes", [True, False])
def test_each_text_of_a_beam_search_has_the_probability_that_the_model_gives_it(
    opened: Callable[..., Engine], mixes: bool
) -> None:
    engine = opened(mixes=mixes)
    search = engine.search(PROMPT, Params(temperature=0, max_new_tokens=12), beams=4)
    list(search)
    assert len(search.found.hypotheses) == 4
    size, prompt = engine.tokenizer.size, engine.tokenizer.encode(PROMPT)
    for text in search.found.hypotheses:
        own = [*prompt, *ids(text.tokens)]
        sequence = engine.session.sequence()
        logits = sequence.prefill(own[:-1], len(text.tokens)).logits[:, :size].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        total = sum(row[token] for row, token in zip(logprobs, ids(text.tokens), strict=True))
        assert text.logprob == pytest.approx(total, abs=1e-4)


def test_a_pass_that_fails_for_one_request_leaves_the_others_their_text(
    opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened()
    loop = Loop(engine.session.batch(2))
    bad, good = engine.request("hello", GREEDY), engine.request("moon" * 50, GREEDY)
    execute = Pass.execute

    def broken(self: Pass) -> None:
        execute(self)
        if bad.sequence is not None and bad.new_tokens == 5 and bad.sequence.slot in self.slots:
            raise MemoryError("no room for the pass")

    expected = alone(engine, "moon" * 50)
    monkeypatch.setattr(Pass, "execute", broken)
    tokens: list[Token] = []
    for one in (bad, good):
        loop.submit(one)
    while loop.busy:
        tokens += [event.token for event in loop.step() if event.request is good and event.token is not None]
    assert isinstance(bad.error, MemoryError)
    assert good.error is None
    assert ids(tokens) == expected


def test_a_prompt_is_read_in_as_few_passes_as_copies_need(
    opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened()
    rows: list[int] = []
    execute = Pass.execute
    monkeypatch.setattr(Pass, "execute", lambda self: (rows.append(self.rows), execute(self)))
    short, long = (
        engine.request("x" * count, Params(temperature=0, max_new_tokens=1)) for count in (LEAST_COPIED, 200)
    )
    run(Loop(engine.session.batch(1)), short)
    assert rows == [LEAST_COPIED], "so few tokens are as well computed again"
    rows.clear()
    run(Loop(engine.session.batch(1)), long)
    assert rows == [199, 1]


def test_drafts_are_shorter_where_a_wrong_one_is_computed_again() -> None:
    curve = [0.0] + [1 + 0.12 * rows for rows in range(MAX_ROWS)]
    plain, careful = (Plan(Acceptance(), curve, 0, repeats=repeats) for repeats in (False, True))
    lengths = [(plain.length(group), careful.length(group)) for group in range(9)]
    assert all(b <= a for a, b in lengths)
    assert any(0 < b < a for a, b in lengths)
    assert repeat_seconds(curve, 1, 3) == pytest.approx(0.36)
    setting = Setting("low", None, share=0.7)  # type: ignore[arg-type]  # only its share and times count
    setting.times.append(0.1)
    assert setting.best_length(curve, 0, repeats=True)[0] < setting.best_length(curve, 0)[0]


def test_what_is_computed_again_counts_as_a_loss_and_drafts_that_lose_rest() -> None:
    costs = PassCosts()
    for rows in range(1, MAX_ROWS + 1):
        for _ in range(SAMPLES):
            costs.add(rows, 1 + 0.2 * (rows - 1))
    assert repeat_loss(costs.curve(), 6, 5, 2.0) == pytest.approx(1.0)
    assert repeat_loss(costs.curve(), 6, 5, 0.5) == 0
    assert repeat_loss([], 6, 5, 2.0) == 0
    drafter, text, drafts = NgramDrafter(costs, repeats=True), [1, 2, 3, 4] * 8, 0
    for turn in range(200):  # what comes is always another token than the one before
        draft = drafter.draft(text, 10)
        drafts += bool(draft)
        drafter.verified(len(draft), 0, 1 + len(draft), 1 + 0.2 * len(draft))
        if draft:
            drafter.verified(0, 0, 2, 1.2, 1)
        text += [1, 2, 3, 4, 100 + turn]
    assert drafts < 20
