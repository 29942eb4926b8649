"""Masks, penalties and log-probabilities on the target cpu: beside other texts, with guesses, after reused prefixes."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.operators.our_library import needs_library
from support.runs import write_run

from adaptive_lm.contract.file_names import MANIFEST
from adaptive_lm.export.package import write_files
from adaptive_lm.export.source import read
from adaptive_lm.runtime import Engine, Generation, Loop, Params, Token, load
from adaptive_lm.runtime.format.manifest import Precisions
from adaptive_lm.runtime.generation.sampling.logprobs import token_logprob

pytestmark = needs_library
PROMPT = "the moon turns over a stone.\nnight falls"
SETTINGS = Params(
    temperature=1.1, seed=5, top_p=0.95, repetition_penalty=1.1, frequency_penalty=0.5, presence_penalty=0.2,
    logit_bias={3: 1.5, 9: -2.0}, logprobs=3, max_new_tokens=120, speculate="off",
)  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    place = tmp_path_factory.mktemp("sampling")
    source = read(write_run(place / "runs" / "tiny"))
    folder: Path = place / "model"
    folder.mkdir()
    manifest = write_files(source, folder, Precisions.of("int8"), ["cpu"], "fp16")
    (folder / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    return load(folder, device="cpu", target="cpu", threads=1, verify=False)


class Alternating:
    """A grammar: tokens of even and odd ids take turns, and the end of the text never comes."""

    def __init__(self, size: int, eos: int, most: int | None = None) -> None:
        self._size, self._eos, self._most = size, eos, most

    def mask(self) -> "Turns":
        return Turns(self._size, self._eos, self._most)


class Turns:
    """The mask of a text of `Alternating`, which ends after `most` tokens; it is strict about how it is called."""

    def __init__(self, size: int, eos: int, most: int | None) -> None:
        self._bits = []
        for parity in (0, 1):
            bits = np.zeros(32 * (size // 32 + 1), np.uint8)
            bits[parity:size:2] = 1
            bits[eos] = 0
            self._bits.append(np.packbits(bits, bitorder="little").view(np.uint32))
        self._most, self._asked = most, False
        self.tokens: list[int] = []

    @property
    def ended(self) -> bool:
        return len(self.tokens) == self._most

    def allowed(self) -> NDArray[np.uint32]:
        assert not self._asked, "each mask is asked for once, before the choice"
        self._asked = True
        return self._bits[len(self.tokens) % 2]

    def accept(self, token: int) -> None:
        assert self._asked
        assert token % 2 == len(self.tokens) % 2
        self._asked = False
        self.tokens.append(token)


class Guesses:
    """Drafts the known text, every third token of it wrong; 0 after its end."""

    def __init__(self, text: Sequence[int]) -> None:
        self._text = text

    def draft(self, ids: Sequence[int], most: int, others: int = 0) -> list[int]:
        draft = [*self._text[len(ids) : len(ids) + most], *[0] * most][:most]
        return [token if (len(ids) + place) % 3 else (token + 1) % 20 for place, token in enumerate(draft)]

    def verified(self, drafted: int, accepted: int, rows: int, seconds: float, again: int = 0) -> None:
        pass

    def verdict(self) -> None:
        pass


def seen(tokens: Sequence[Token]) -> list[Any]:
    return [(token.id, token.text, token.usage, token.logprob, token.top_logprobs) for token in tokens]


@pytest.fixture(scope="module")
def grammar_of(engine: Engine) -> Callable[..., Alternating]:
    model = engine.manifest.model
    return lambda most=None: Alternating(model.tokenizer_size, model.eos_id, most)


@pytest.mark.parametrize("temperature", [0, 1.1])
@pytest.mark.parametrize("most", [None, 1, 37])
def test_guesses_change_neither_tokens_nor_log_probabilities_under_a_mask_and_penalties(
    engine: Engine, grammar_of: Callable[..., Alternating], most: int | None, temperature: float
) -> None:
    params = dataclasses.replace(SETTINGS, temperature=temperature)
    plain = engine.generate(PROMPT, params, grammar=grammar_of(most))
    expected = list(plain)
    assert len(expected) == (most or 120)
    assert plain.finish_reason == ("length" if most is None else "stop")
    text = engine.tokenizer.encode(PROMPT) + [token.id for token in expected]
    fresh = Engine(engine.session, engine.tokenizer)
    request = fresh.request(PROMPT, params, grammar=grammar_of(most))
    request.make_drafter = lambda _: Guesses(text)
    generation = Generation(fresh.begin, request)
    assert seen(list(generation)) == seen(expected)
    assert generation.finish_reason == plain.finish_reason
    if most != 1:
        assert request.accepted > len(expected) / 2
        assert request.drafted > request.accepted


def test_settings_of_neighbours_do_not_touch_a_text(engine: Engine, grammar_of: Callable[..., Alternating]) -> None:
    fresh = Engine(engine.session, engine.tokenizer)
    each = [dataclasses.replace(SETTINGS, seed=seed, max_new_tokens=30) for seed in range(5)]
    alone = [seen(list(fresh.generate(PROMPT, one, grammar=grammar_of()))) for one in each]
    together = [seen(one.tokens) for one in fresh.generate_many([PROMPT] * 5, each, grammar=grammar_of(), slots=3)]
    assert together == alone


def run(loop: Loop) -> Iterator[Token]:
    while loop.busy:
        yield from (event.token for event in loop.step() if event.token is not None)


def test_log_probabilities_of_a_prompt_reuse_no_prefix_and_change_no_token(engine: Engine) -> None:
    prompt, params = PROMPT * 2, Params(temperature=0, max_new_tokens=8, speculate="off")
    ids = engine.tokenizer.encode(prompt)
    assert len(ids) > 64
    loop = Loop(engine.session.batch(1))
    texts = []
    for scored in (None, None, 4, None):
        request = engine.request(prompt, params, prompt_logprobs=scored)
        loop.submit(request)
        texts.append([token.id for token in run(loop)])
        assert (request.cached_tokens > 0) == (len(texts) in (2, 4))
        if scored is not None:
            logits = engine.session.sequence().prefill(ids, num_logits=len(ids)).logits[:, : engine.tokenizer.size]
            wanted = [token_logprob(row, token, scored) for row, token in zip(logits, ids[1:], strict=False)]
            assert request.prompt_scores == [(None, {}), *wanted]
    assert texts == [texts[0]] * 4


def test_the_tokens_of_a_prompt_are_scored_beside_a_text_that_decodes(engine: Engine) -> None:
    params = Params(temperature=0, max_new_tokens=40, speculate="off")
    loop = Loop(engine.session.batch(2))
    other = engine.request("night", params)
    loop.submit(other)
    tokens = [event.token.id for event in loop.step() if event.token is not None]
    request = engine.request(PROMPT * 3, params, prompt_logprobs=0)
    loop.submit(request)
    while loop.busy:
        tokens += [one.token.id for one in loop.step() if one.request is other and one.token is not None]
    fresh = Engine(engine.session, engine.tokenizer)
    assert tokens == [token.id for token in fresh.generate("night", params)]
    alone = fresh.generate(PROMPT * 3, params, prompt_logprobs=0)
    list(alone)
    assert request.prompt_scores == alone.request.prompt_scores
    assert len(request.prompt_scores) == request.prompt_tokens
