"""Exported models behind the scheduler: a text does not depend on its neighbours, in whatever precision."""

import asyncio

import pytest
from support.operators.our_library import needs_library
from support.serving.scheduled import tokens_of

from adaptive_lm.export.exporter import Exported
from adaptive_lm.runtime import Params, load
from adaptive_lm.serve.scheduler.job import Job

TEXTS = ("the sea", "a ship sails", "of", "mountains rise where plates meet", "b", "wind and ice", "rain", "the moon")


@needs_library
@pytest.mark.parametrize("fixture", ["exported", "exported_int8"])
@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_a_text_is_the_same_alone_and_among_seven_others(
    fixture: str, target: str, request: pytest.FixtureRequest
) -> None:
    """S29, drawn with a seed and with the best token."""
    exported: Exported = request.getfixturevalue(fixture)
    engine = load(exported.folder, device="cpu", target=target, threads=1)
    for temperature in (0.0, 0.9):
        params = [Params(temperature=temperature, seed=number, max_new_tokens=16) for number in range(len(TEXTS))]
        prompts = [tuple(engine.tokenizer.encode(text)) for text in TEXTS]
        alone = [
            [token.id for token in engine.generate(prompt, one)] for prompt, one in zip(prompts, params, strict=True)
        ]
        jobs = [Job(prompt=ids, params=one, client="a") for ids, one in zip(prompts, params, strict=True)]
        assert asyncio.run(tokens_of(exported.folder, target, jobs)) == alone
