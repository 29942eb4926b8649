"""Texts that were guessed ahead are those of plain decoding: tokens, text, usage and ends, whatever is guessed."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.cases import each
from support.operators.our_library import needs_library
from support.runs import write_run

from adaptive_lm.contract.file_names import MANIFEST
from adaptive_lm.export.package import write_files
from adaptive_lm.export.source import read
from adaptive_lm.runtime import Engine, Generation, Params, Token, UserError, load
from adaptive_lm.runtime.format.manifest import KV, Precision, Precisions
from adaptive_lm.runtime.generation.sampling.sampler import Sampler
from adaptive_lm.runtime.speculation.pass_costs import MAX_ROWS, SAMPLES, PassCosts

PROMPT = "the moon turns over a stone.\nnight falls"
KINDS: dict[str, dict[str, Any]] = {
    "none": {},
    "project": {"depth": {"layers_share": 0.5, "skipped_kv": "project", "exit_layers": [0, 1]}},
    "ring": {"heads": {"routing": "adaptive"}, "attention": {"positions": "cope", "max_positions": 8, "window": 8}},
}
SETTINGS = {
    "greedy": Params(temperature=0, max_new_tokens=200, speculate="off"),
    "sampled": Params(temperature=0.9, seed=5, max_new_tokens=200, speculate="off"),
    "filtered": Params(temperature=1.2, seed=6, top_p=0.9, top_k=20, repetition_penalty=1.1, max_new_tokens=200,
                       speculate="off"),
}  # fmt: skip


class Guessing:
    """Drafts the known text with errors: up to `longest` tokens, of which each is wrong with probability `errors`."""

    def __init__(self, text: Sequence[int], errors: float, longest: int = 12, seed: int = 1) -> None:
        self.text, self.errors, self.longest = text, errors, longest
        self.passes: list[tuple[int, int, int]] = []
        self._draw = random.Random(seed)

    def draft(self, ids: Sequence[int], most: int, others: int = 0) -> list[int]:
        count = min(self._draw.randint(0, self.longest), most)
        draft = list(self.text[len(ids) : len(ids) + count])
        draft += [0] * (count - len(draft))
        return [(token + 1) % 20 if self._draw.random() < self.errors else token for token in draft]

    def verified(self, drafted: int, accepted: int, rows: int, seconds: float, again: int = 0) -> None:
        assert seconds > 0
        self.passes.append((drafted, accepted, rows))

    def verdict(self) -> None:
        pass


class Endless:
    """The sampler of these settings, which never chooses the end of the text."""

    def __init__(self, engine: Engine, prompt: str, params: Params) -> None:
        model, ids = engine.manifest.model, engine.tokenizer.encode(prompt)
        self._sampler, self._eos = Sampler(params, model.tokenizer_size, ids), model.eos_id
        self.seed = self._sampler.seed

    def choose(self, logits: NDArray[np.float32]) -> int:
        logits = logits.copy()
        logits[self._eos] = -1e9
        return self._sampler.choose(logits)


class Script:
    """A sampler that returns these tokens for any logits."""

    seed = 0

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = iter(ids)

    def choose(self, logits: object) -> int:
        return next(self._ids)


@pytest.fixture(scope="module")
def engine_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Engine]:
    """Return a function that opens a model of a kind in a precision, written once."""
    place = tmp_path_factory.mktemp("speculation")
    written: dict[tuple[str, str, str], Path] = {}

    def opened(kind: str = "none", precision: Precision = "fp32", kv: KV = "fp32", target: str = "cpu") -> Engine:
        key = (kind, precision, kv)
        if key not in written:
            source = read(write_run(place / kind / "runs" / "tiny", **KINDS[kind]))
            folder = written[key] = place / "-".join(key) / "model"
            folder.mkdir(parents=True)
            manifest = write_files(source, folder, Precisions.of(precision), ["cpu"], kv)
            (folder / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
        return load(written[key], device="cpu", target=target, threads=1, verify=False)

    return opened


def guessed(engine: Engine, prompt: str | list[int], params: Params, drafter: Guessing, **more: Any) -> Generation:
    """Return a generation whose tokens this drafter guesses."""
    request = engine.request(prompt, params, **more)
    request.make_drafter = lambda _: drafter
    return Generation(engine.begin, request)


def seen(tokens: Sequence[Token]) -> list[Any]:
    """Return what must be equal of a token: id, text and usage."""
    return [(token.id, token.text, token.usage) for token in tokens]


def make_drafts_cheap(costs: PassCosts) -> None:
    """Let passes of many rows look as fast as those of one, so that whatever recurs is drafted."""
    for rows in range(1, MAX_ROWS + 1):
        for _ in range(SAMPLES):
            costs.add(rows, 1e-6 * (1 + 0.01 * rows))


@needs_library
@each("settings", ["greedy", "filtered"])
@each(("precision", "kv"), [("fp32", "fp32"), ("int8", "fp16"), ("int4", "int8"), ("bf16", "fp32")])
@each("kind", KINDS)
def test_right_and_wrong_guesses_change_nothing(
    engine_of: Callable[..., Engine], kind: str, precision: Precision, kv: KV, settings: str
) -> None:
    engine, params = engine_of(kind, precision, kv), SETTINGS[settings]
    plain = list(engine.generate(PROMPT, params, sampler=Endless(engine, PROMPT, params)))
    assert len(plain) == 200
    for errors in (0.0, 0.2, 1.0):
        drafter = Guessing(engine.tokenizer.encode(PROMPT) + [token.id for token in plain], errors)
        fresh = Engine(engine.session, engine.tokenizer)
        generation = guessed(fresh, PROMPT, params, drafter, sampler=Endless(engine, PROMPT, params))
        assert seen(list(generation)) == seen(plain), errors
        request = generation.request
        assert request.drafted == sum(drafted for drafted, _, _ in drafter.passes)
        assert request.accepted == sum(accepted for _, accepted, _ in drafter.passes)
        assert all(rows == drafted + 1 for drafted, _, rows in drafter.passes)
        if errors == 0:
            assert len(drafter.passes) < len(plain) / 4
            assert request.accepted == request.drafted > 100
        if errors == 1:
            assert request.drafted > 100
            assert request.accepted < request.drafted / 4


@needs_library
@pytest.mark.parametrize("longest", [3, 40])
def test_a_text_ends_within_a_draft_as_it_ends_without(engine_of: Callable[..., Engine], longest: int) -> None:
    engine = engine_of()
    eos = engine.manifest.model.eos_id
    prompt = engine.tokenizer.encode(PROMPT)
    plain = list(engine.generate(prompt, SETTINGS["sampled"], sampler=Endless(engine, PROMPT, SETTINGS["sampled"])))
    text, ids = "".join(token.text for token in plain), [token.id for token in plain]
    context = engine.manifest.model.context_length
    for script, settings, reason in (
        (ids, {"stop": (text[50:53],)}, "stop"),
        (ids, {"stop": ("not in it", text[20:60])}, "stop"),
        ([*ids[:37], eos, *ids[38:]], {}, "eos"),
        ([*ids[:1], eos, *ids[2:]], {}, "eos"),
        (ids, {"max_new_tokens": 1}, "length"),
        (ids, {"max_new_tokens": 2}, "length"),
        (ids, {"max_new_tokens": 38}, "length"),
        ([*ids, *ids], {"max_new_tokens": context - len(prompt)}, "length"),
    ):
        params = Params(speculate="off", **({"max_new_tokens": 200} | settings))  # type: ignore[arg-type]
        alone = engine.generate(prompt, params, sampler=Script(script))
        expected = list(alone)
        assert alone.finish_reason == reason
        generation = guessed(engine, prompt, params, Guessing([*prompt, *script], 0, longest), sampler=Script(script))
        assert seen(list(generation)) == seen(expected)
        assert generation.finish_reason == reason


@needs_library
def test_the_time_of_a_pass_is_shared_by_its_tokens(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    params = SETTINGS["greedy"]
    plain = list(engine.generate(PROMPT, params, sampler=Endless(engine, PROMPT, params)))
    drafter = Guessing(engine.tokenizer.encode(PROMPT) + [token.id for token in plain], 0, longest=8)
    tokens = list(guessed(engine, PROMPT, params, drafter, sampler=Endless(engine, PROMPT, params)))
    place = 1
    for _, accepted, _ in drafter.passes:
        assert len({token.seconds for token in tokens[place : place + accepted + 1]}) == 1
        place += accepted + 1
    assert place == len(tokens)


@needs_library
@each("speculate", ["ngram", "dial", None])
@each("settings", SETTINGS)
@each("kind", KINDS)
def test_each_way_to_guess_gives_the_same_text(
    engine_of: Callable[..., Engine], kind: str, settings: str, speculate: Any
) -> None:
    engine = engine_of(kind, "int8", "fp16")
    other = Engine(engine.session, engine.tokenizer)
    make_drafts_cheap(other.speculation.costs)
    drafted = 0
    for prompt in (PROMPT, "a " * 20):
        params_off = SETTINGS[settings]
        params = Params(**{**vars(params_off), "speculate": speculate})
        plain = seen(list(engine.generate(prompt, params_off, sampler=Endless(engine, prompt, params))))
        generation = other.generate(prompt, params, sampler=Endless(engine, prompt, params))
        assert seen(list(generation)) == plain
        drafted += generation.request.drafted
    assert drafted or (settings != "greedy" and speculate != "dial")


@needs_library
def test_many_texts_that_are_guessed_ahead_are_single_runs(engine_of: Callable[..., Engine]) -> None:
    engine, many = engine_of("none", "int8", "fp16"), engine_of("none", "int8", "fp16")
    make_drafts_cheap(many.speculation.costs)
    prompts = [PROMPT, "a " * 20, "the sun " * 10, "x", PROMPT[:20]]
    plain = [Params(temperature=0.7 * (i % 2), seed=i, max_new_tokens=120, speculate="off") for i in range(5)]
    ways = ["ngram", "dial", None, "ngram", "off"]
    settings = [Params(**{**vars(one), "speculate": way}) for one, way in zip(plain, ways, strict=True)]
    for one, prompt, params in zip(many.generate_many(prompts, settings, slots=3), prompts, plain, strict=True):
        assert seen(one.tokens) == seen(list(engine.generate(prompt, params)))


@needs_library
def test_guesses_leave_the_distribution_as_it_is(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    size = engine.manifest.model.tokenizer_size
    prompt = engine.tokenizer.encode(PROMPT)
    sequence = engine.session.sequence()

    def probabilities(ids: list[int]) -> Any:
        sequence.rewind(0)
        logits = sequence.prefill(ids).logits[-1][:size].astype(np.float64)
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    first = probabilities(prompt)
    eos = engine.manifest.model.eos_id
    second = sum(first[token] * probabilities([*prompt, token]) for token in range(size) if token != eos)
    likely = [int(token) for token in np.argsort(-second)[:2]]  # what the drafter always guesses
    wanted, runs, counts, accepted = 3000, 0, np.zeros(size), 0
    while counts.sum() < wanted:
        drafter = Guessing([*prompt, 0, *likely], 0, longest=2, seed=runs)
        generation = guessed(engine, prompt, Params(temperature=1, seed=runs, max_new_tokens=3), drafter)
        ids = [token.id for token in generation]
        runs, accepted = runs + 1, accepted + generation.request.accepted
        if ids[0] != eos:
            counts[ids[1]] += 1
    assert accepted > wanted / 20
    expected = second / second.sum() * counts.sum()
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    awaited = np.append(expected[common], max(expected[~common].sum(), 1e-9))
    statistic = ((observed - awaited) ** 2 / awaited).sum()
    freedom = common.sum()
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)


def test_on_the_portable_target_nothing_is_guessed_and_a_request_to_is_refused(
    engine_of: Callable[..., Engine],
) -> None:
    engine = engine_of(target="portable")
    generation = engine.generate("a " * 20, Params(temperature=0, max_new_tokens=40))
    list(generation)
    assert generation.request.drafted == 0
    for way in ("ngram", "dial"):
        with pytest.raises(UserError, match=r"needs the target cpu.*leave out --speculate, or make that target"):
            engine.generate("a", Params(speculate=way))  # type: ignore[arg-type]
    assert len(list(engine.generate("a", Params(speculate="off", max_new_tokens=1)))) == 1


@needs_library
def test_a_drafter_that_fails_ends_its_text_alone(engine_of: Callable[..., Engine]) -> None:
    class Failing(Guessing):
        def draft(self, ids: Sequence[int], most: int, others: int = 0) -> list[int]:
            raise ArithmeticError("no guess")

    engine: Engine = engine_of()
    with pytest.raises(ArithmeticError, match="no guess"):
        list(guessed(engine, PROMPT, SETTINGS["greedy"], Failing([], 0)))
    assert len(list(engine.generate(PROMPT, Params(max_new_tokens=1)))) == 1
