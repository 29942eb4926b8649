"""Exported models with recurrent mixers: chunks, neighbours, drafts, going back and prefixes change no bit."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cases import slowly_all
from support.operators.our_library import needs_library
from support.runs import write_run
from support.serving.scheduled import tokens_of
from support.twins import Twins

from adaptive_lm.export.package import write_files
from adaptive_lm.export.source import read
from adaptive_lm.runtime import Dial, Engine, Loop, Params, Sequence, Step, Thresholds, load
from adaptive_lm.runtime.dial import resolve
from adaptive_lm.runtime.format.manifest import Precision, Precisions
from adaptive_lm.runtime.generation.prompt_parts import LEAST_COPIED
from adaptive_lm.serve.scheduler.job import Job

CONTEXT = 2304
PROJECT = {"depth": {"layers_share": 0.5, "skipped_kv": "project", "exit_layers": [0, 1]}}
KINDS: dict[str, dict[str, Any]] = {
    "retnet": {"mixers": "retnet"},
    "mamba2_hybrid": {"mixers": ["mamba2", "mamba2", "attention"]},
    "rwkv7_project": {"mixers": "rwkv7", **PROJECT},
    "gated_delta_ring": {"mixers": ["gated_delta", "attention", "gated_delta"], "attention": {"window": 8}},
}
PROMPT = "the moon turns over a stone.\nnight falls"
Opener = Callable[..., Engine]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that writes a model of a kind in a precision once, and returns its folder."""
    place = tmp_path_factory.mktemp("states")
    written: dict[tuple[str, str], Path] = {}

    def folder(kind: str, precision: Precision = "fp32") -> Path:
        key = kind, precision
        if key not in written:
            source = read(write_run(place / kind / "runs" / "tiny", context_length=CONTEXT, **KINDS[kind]))
            written[key] = place / "-".join(key) / "model"
            written[key].mkdir(parents=True)
            write_files(source, written[key], Precisions.of(precision), ["cpu"]).write(written[key])
        return written[key]

    return folder


@pytest.fixture
def opened(folder_of: Callable[..., Path]) -> Opener:
    """Return a function that opens a model of a kind in a precision, with an engine of its own."""

    def engine(kind: str, precision: Precision = "fp32", target: str = "cpu") -> Engine:
        return load(folder_of(kind, precision), device="cpu", target=target, threads=1, verify=False)

    return engine


class Endless:
    """A sampler that draws, but never the end of the text."""

    seed = 0

    def __init__(self, engine: Engine) -> None:
        model = engine.manifest.model
        self._random, self._size, self._eos = np.random.default_rng(3), model.tokenizer_size, model.eos_id

    def choose(self, logits: Any) -> int:
        drawn = logits[: self._size] + self._random.gumbel(size=self._size)
        drawn[self._eos] = -np.inf
        return int(drawn.argmax())


class Guessing:
    """Drafts the known text, each token wrong with probability `errors`."""

    def __init__(self, text: list[int], errors: float) -> None:
        self.text, self.errors = text, errors
        self.again = 0
        self._random = np.random.default_rng(1)

    def draft(self, ids: Any, most: int, others: int = 0) -> list[int]:
        count = min(int(self._random.integers(13)), most)
        draft = self.text[len(ids) : len(ids) + count]
        return [(token + 1) % 20 if self._random.random() < self.errors else token for token in draft]

    def verified(self, drafted: int, accepted: int, rows: int, seconds: float, again: int = 0) -> None:
        self.again += again

    def verdict(self) -> None:
        pass


def at(engine: Engine, top_p: float) -> Thresholds:
    return resolve(engine.manifest, Dial(router_top_p=top_p))


def same(one: Step, other: Step) -> None:
    np.testing.assert_array_equal(one.logits, other.logits)
    for name in ("selected_experts", "layers_run", "exit_layer", "keys", "positions"):
        np.testing.assert_array_equal(getattr(one.routes, name), getattr(other.routes, name), err_msg=name)


def states(sequence: Sequence) -> list[bytes]:
    return [value.numpy()[sequence.slot].tobytes() for value in sequence.states.values.values()]


def seen(tokens: Any) -> list[Any]:
    return [(token.id, token.text, token.usage) for token in tokens]


@needs_library
@pytest.mark.parametrize(("kind", "precision"), slowly_all(KINDS, ["fp32", "int8"]))
def test_whatever_is_computed_beside_it_a_sequence_has_the_same_bits(
    opened: Opener, kind: str, precision: Precision
) -> None:
    """Random work for random sequences: chunks, single tokens, going back, copies, new texts."""
    engine = opened(kind, precision)
    twins = Twins(engine.session, lambda top_p: at(engine, top_p), seed=3)
    for _ in range(60):
        twins.change()
        work = twins.work()
        if not work:
            continue
        for (sequence, tokens, number), step in zip(work, twins.batch.run(work), strict=True):
            twin = twins.of[sequence]
            same(step, twin.prefill(tokens, number))
            np.testing.assert_array_equal(sequence.lengths, twin.lengths)
            assert states(sequence) == states(twin)
            if twins.random.random() < 0.3:
                back = max(sequence.position - int(twins.random.integers(1, 30)), 0)
                sequence.rewind(back)
                twins.of[sequence] = engine.session.sequence(sequence.thresholds, 224)
                if back:
                    twins.of[sequence].prefill(sequence.ids, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_on_the_portable_target_parts_of_a_prompt_and_single_tokens_agree(opened: Opener, kind: str) -> None:
    engine = opened(kind, target="portable")
    assert not engine.session.graph.mixes_sequences
    ids = np.random.default_rng(4).integers(engine.manifest.model.tokenizer_size, size=150).tolist()
    whole = engine.session.sequence(capacity=224)
    logits = whole.prefill(ids, len(ids)).logits
    parts = engine.session.sequence(capacity=224)
    done = 0
    for count in (1, 70, 1, 1, 13, 64):
        step = parts.prefill(ids[done : done + count], count)
        np.testing.assert_allclose(step.logits, logits[done : done + count], rtol=0, atol=2e-4 * logits.std())
        done += count
    np.testing.assert_array_equal(parts.lengths, whole.lengths)
    parts.rewind(145)
    for token in ids[145:]:
        step = parts.step(token)
    np.testing.assert_allclose(step.logits[-1], logits[-1], rtol=0, atol=2e-4 * logits.std())


@needs_library
@pytest.mark.parametrize(("kind", "precision"), slowly_all(KINDS, ["fp32", "int8", "int4"]))
def test_right_and_wrong_guesses_change_nothing(opened: Opener, kind: str, precision: Precision) -> None:
    count = 2000 if precision == "fp32" else 250
    engine, params = opened(kind, precision), Params(temperature=0, max_new_tokens=count, speculate="off")
    plain = list(engine.generate(PROMPT, params, sampler=Endless(engine)))
    assert len(plain) == count
    drafter = Guessing(engine.tokenizer.encode(PROMPT) + [token.id for token in plain], 0.1)
    request = engine.request(PROMPT, params, sampler=Endless(engine))
    request.make_drafter = lambda _: drafter
    loop, tokens = Loop(engine.session.batch(1, CONTEXT)), []
    loop.submit(request)
    while loop.busy:
        tokens += [event.token for event in loop.step() if event.token is not None]
    assert seen(tokens) == seen(plain)
    assert 0.3 < request.accepted / request.drafted < 0.9
    assert drafter.again > count / 50


@pytest.mark.parametrize("target", [pytest.param("cpu", marks=needs_library), "portable"])
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_that_share_a_beginning_reuse_it_and_change_nothing(opened: Opener, kind: str, target: str) -> None:
    engine = opened(kind, target=target)
    params = Params(temperature=0.8, seed=2, max_new_tokens=12, speculate="off")
    system = "a stone under the moon turns over.\n" * 8
    prompts = [system + end for end in ("night falls", "the sun rises", *["a river " * 12] * 2, "a stone")]
    loop, texts, cached = Loop(engine.session.batch(3, 448)), [], []
    for prompt in prompts:
        request = engine.request(prompt, params)
        loop.submit(request)
        own = []
        while loop.busy:
            own += [event.token.id for event in loop.step() if event.token is not None]
        texts.append(own)
        cached.append(request.cached_tokens)
    for prompt, own in zip(prompts, texts, strict=True):
        alone = opened(kind, target=target)
        assert [token.id for token in alone.generate(prompt, params)] == own
    length = len(engine.tokenizer.encode(system))
    if target == "cpu":
        assert length - LEAST_COPIED < cached[2] <= length, "the two before parted there"
        assert cached[3] == len(engine.tokenizer.encode(prompts[3])) - 1
        assert length - LEAST_COPIED < cached[4] <= length
    else:
        assert cached[1:] == [length // 128 * 128] * 4


@pytest.mark.parametrize("target", [pytest.param("cpu", marks=needs_library), "portable"])
@pytest.mark.parametrize("kind", ["retnet", "gated_delta_ring"])
def test_served_texts_are_those_of_each_alone(
    opened: Opener, folder_of: Callable[..., Path], kind: str, target: str
) -> None:
    engine = opened(kind, target=target)
    texts = ("the sun", PROMPT * 4, "a stone", PROMPT * 4, "river")
    params = [Params(temperature=0.9, seed=number, max_new_tokens=16) for number in range(len(texts))]
    prompts = [tuple(engine.tokenizer.encode(text)) for text in texts]
    alone = [
        [token.id for token in opened(kind, target=target).generate(prompt, one)]
        for prompt, one in zip(prompts, params, strict=True)
    ]
    jobs = [Job(prompt=ids, params=one, client="a") for ids, one in zip(prompts, params, strict=True)]
    assert asyncio.run(tokens_of(folder_of(kind), target, jobs, max_batch=3)) == alone


@pytest.mark.parametrize("target", [pytest.param("cpu", marks=needs_library), "portable"])
@pytest.mark.parametrize("kind", ["mamba2_hybrid", "rwkv7_project"])
def test_searches_copy_states(opened: Opener, kind: str, target: str) -> None:
    engine = opened(kind, target=target)
    size, prompt = engine.tokenizer.size, engine.tokenizer.encode(PROMPT)
    search = engine.search(PROMPT, Params(temperature=0, max_new_tokens=8), beams=3)
    list(search)
    for text in search.found.hypotheses:
        own = [*prompt, *(token.id for token in text.tokens)]
        sequence = engine.session.sequence(capacity=128)
        logits = sequence.prefill(own[:-1], len(text.tokens)).logits[:, :size].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        total = sum(row[token.id] for row, token in zip(logprobs, text.tokens, strict=True))
        assert text.logprob == pytest.approx(total, abs=2e-3)
    params = Params(temperature=0.8, seed=3, max_new_tokens=20, speculate="off")
    for text in engine.best_of(PROMPT * 4, params, n=3).hypotheses:
        alone = opened(kind, target=target)
        own_params = Params(temperature=0.8, seed=text.seed, max_new_tokens=20, speculate="off")
        ids = [token.id for token in alone.generate(PROMPT * 4, own_params)]
        assert [token.id for token in text.tokens] == ids
