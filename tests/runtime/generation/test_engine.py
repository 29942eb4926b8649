"""Generation: what comes out, when it ends, and what it refuses (S4, S6, S8, S13, S61)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.foreign.tokenizer_families import END, family
from support.graphs.tiny_graph import CONTEXT, EOS, TOKENS, expected

from adaptive_lm.runtime import Engine, Params, Token, Tokenizer, UserError
from adaptive_lm.runtime.generation.summary import summarise

GREEDY = Params(temperature=0, max_new_tokens=20)


class Scripted:
    """A sampler that returns these ids for any logits."""

    def __init__(self, ids: bytes | list[int]) -> None:
        self.ids, self.seed = list(ids), 0

    def choose(self, logits: object) -> int:
        return self.ids.pop(0)


def scripted(engine: Engine, ids: bytes | list[int], **params: object) -> list[Token]:
    generation = engine.generate("x", Params(**params), sampler=Scripted(ids))  # type: ignore[arg-type]
    tokens = list(generation)
    scripted.reason = generation.finish_reason  # type: ignore[attr-defined]
    return tokens


def texts(tokens: list[Token]) -> list[str]:
    return [token.text for token in tokens]


def test_greedy_generation_is_the_argmax_of_the_graph(engine: Engine) -> None:
    generated = [token.id for token in engine.generate("hello", GREEDY)]
    ids = list(b"hello")
    for _ in range(20):
        ids.append(int(expected(ids, 0.5, 0.4, 1)[0][-1][:TOKENS].argmax()))
    assert generated == ids[5:]


def test_the_same_seed_gives_the_same_tokens_alone_and_after_others(engine: Engine) -> None:
    params = Params(seed=11, max_new_tokens=30)
    first = [token.id for token in engine.generate("a", params)]
    list(engine.generate("something longer in between", Params(seed=1, max_new_tokens=50)))
    assert [token.id for token in engine.generate("a", params)] == first
    assert [token.id for token in engine.generate("a", Params(seed=12, max_new_tokens=30))] != first


def test_usage_is_that_of_the_pass_a_token_was_chosen_from(engine: Engine) -> None:
    tokens = list(engine.generate("hello", GREEDY))
    ids = list(b"hello") + [token.id for token in tokens]
    selected = expected(ids, 0.5, 0.4, 1)[1]
    for i, token in enumerate(tokens):
        used = tuple(tuple(np.flatnonzero(layer).tolist()) for layer in selected[:, 4 + i])
        assert token.usage.experts == used


def test_time_passes_and_is_measured(engine: Engine) -> None:
    assert all(token.seconds > 0 for token in engine.generate("hello", GREEDY))


def test_the_speed_is_that_of_decoding_without_the_wait_for_the_prompt(engine: Engine) -> None:
    generation = engine.generate("hello", GREEDY)
    tokens = [replace(token, seconds=9.0 if i == 0 else 0.010 + 0.001 * i) for i, token in enumerate(generation)]
    summary = summarise(generation.request, tokens)
    assert summary.prompt_seconds == 9
    assert summary.p50 == pytest.approx(20)
    assert summary.p95 == pytest.approx(28.1)
    assert summary.tokens_per_second == pytest.approx(50)
    alone = summarise(generation.request, tokens[:1])
    assert alone.tokens_per_second == pytest.approx(1 / 9)
    assert summarise(generation.request, []).new_tokens == 0


def test_characters_come_whole(engine: Engine) -> None:
    tokens = scripted(engine, "aü🏔".encode(), max_new_tokens=7)
    assert texts(tokens) == ["a", "", "ü", "", "", "", "🏔"]


@pytest.mark.parametrize("name", ["words without decoder", "WordPiece", "metaspace always", "BPE with suffix"])
def test_the_text_goes_on_where_the_prompt_ends(engine: Engine, tmp_path: Path, name: str) -> None:
    library = family(name)
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", size=library.get_vocab_size(), eos_id=library.token_to_id(END))
    prompt, ids = tokenizer.encode("a b"), tokenizer.encode("a b x a")
    sampler = Scripted(ids[len(prompt) :])
    params = Params(max_new_tokens=len(ids) - len(prompt))
    generation = Engine(engine.session, tokenizer).generate("a b", params, sampler=sampler)
    assert library.decode(prompt) + "".join(texts(list(generation))) == library.decode(ids)


def test_a_character_cut_by_the_limit_is_replaced_at_the_end(engine: Engine) -> None:
    tokens = scripted(engine, "a🏔".encode()[:3], max_new_tokens=3)
    assert texts(tokens) == ["a", "", "�"]


def test_generation_ends_at_end_of_text(engine: Engine) -> None:
    tokens = scripted(engine, [104, 105, EOS, 104])
    assert texts(tokens) == ["h", "i", ""]
    assert scripted.reason == "eos"  # type: ignore[attr-defined]


def test_generation_ends_before_a_stop_string(engine: Engine) -> None:
    tokens = scripted(engine, b"hi.\n\nUser: x", stop=("\n\nUser",))
    assert "".join(texts(tokens)) == "hi."
    assert tokens[-1].id == ord("r")
    assert scripted.reason == "stop"  # type: ignore[attr-defined]


def test_what_looked_like_a_stop_string_is_not_lost_at_the_end(engine: Engine) -> None:
    for ids, reason in (([*b"hi Us", EOS], "eos"), ([*b"hi Use"], "length")):
        tokens = scripted(engine, ids, stop=("User",), max_new_tokens=6)
        assert "".join(texts(tokens)) == bytes(token.id for token in tokens if token.id != EOS).decode()
        assert scripted.reason == reason  # type: ignore[attr-defined]


def test_a_stop_string_in_the_very_last_token_is_still_one(engine: Engine) -> None:
    tokens = scripted(engine, b"hi.", stop=(".",), max_new_tokens=3)
    assert "".join(texts(tokens)) == "hi"
    assert scripted.reason == "stop"  # type: ignore[attr-defined]


def test_a_prompt_and_new_tokens_beyond_the_context_give_both_numbers(engine: Engine) -> None:
    with pytest.raises(
        UserError, match=f"found 90 prompt tokens and 7 new ones, 97 together; this model's context is {CONTEXT}"
    ):
        engine.generate("x" * 90, Params(max_new_tokens=7))
    assert engine.generate("x" * 90, Params(max_new_tokens=6)).max_new_tokens == 6


def test_a_prompt_that_fills_the_context_gives_both_numbers(engine: Engine) -> None:
    with pytest.raises(UserError, match=f"found {CONTEXT} prompt tokens.*context is {CONTEXT}"):
        engine.generate("x" * CONTEXT)


def test_without_a_limit_the_context_is_the_limit(engine: Engine) -> None:
    tokens = list(engine.generate("x" * 90, Params(temperature=0)))
    assert len(tokens) == CONTEXT - 90


def test_an_empty_prompt_is_refused(engine: Engine) -> None:
    for prompt in ("", []):
        with pytest.raises(UserError, match="the prompt is empty"):
            engine.generate(prompt)


@pytest.mark.parametrize("count", [0, -1, 2.5])
def test_no_new_tokens_are_refused(count: int) -> None:
    with pytest.raises(UserError, match=f"found max_new_tokens {count}, expected a whole number, at least 1"):
        Params(max_new_tokens=count)


@pytest.mark.parametrize("wrong", [-1, TOKENS, 9999])
def test_ids_outside_the_vocabulary_are_refused(engine: Engine, wrong: int) -> None:
    """S5: padding of the embedding is outside too."""
    with pytest.raises(UserError, match=f"found token {wrong} in the prompt, this model has 0 to {TOKENS - 1}"):
        engine.generate([1, wrong])


def test_a_new_generation_ends_the_one_before(engine: Engine) -> None:
    first = engine.generate("one", Params(temperature=0))
    next(first)
    list(engine.generate("another", Params(temperature=0, max_new_tokens=3)))
    with pytest.raises(RuntimeError, match="one at a time"):
        next(first)


def test_a_generation_put_aside_leaves_no_trace(engine: Engine) -> None:
    wanted = [token.id for token in engine.generate("hello", GREEDY)]
    next(engine.generate("left alone", GREEDY))
    assert [token.id for token in engine.generate("hello", GREEDY)] == wanted


def test_the_dial_of_one_generation_does_not_stay_for_the_next(engine: Engine) -> None:
    before = [token.usage for token in engine.generate("hello", GREEDY)]
    list(engine.generate("hello", Params(temperature=0, max_new_tokens=5, router_top_p=1, exit_threshold=0.2)))
    assert [token.usage for token in engine.generate("hello", GREEDY)] == before


def test_the_names_of_the_package_are_there() -> None:
    import adaptive_lm.runtime as runtime

    for name in runtime.__all__:
        assert getattr(runtime, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Engin'"):
        runtime.Engin  # noqa: B018


def test_padding_is_never_sampled(changed: Callable[..., Path]) -> None:
    """Ids from tokenizer_size on have no text."""
    from adaptive_lm.runtime import load

    engine = load(changed(), device="cpu", threads=1)
    hot = Params(temperature=1000, seed=0, max_new_tokens=90)
    assert all(token.id < TOKENS for _ in range(5) for token in engine.generate("x", hot))
