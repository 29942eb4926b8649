"""Whatever the model, a text that ends matches its constraint, and settings of the sampling keep their meaning."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cases import each
from support.graphs.tiny_graph import CONTEXT

from adaptive_lm.runtime import Engine, Loop, Params, UserError
from adaptive_lm.runtime.generation.sampling.logprobs import token_logprob
from adaptive_lm.runtime.structured.compiler import CompiledGrammar, Compiler
from adaptive_lm.runtime.structured.constraint import Constraint

pytest.importorskip("llguidance")

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def compiler(engine: Engine) -> Iterator[Compiler]:
    compiler = Compiler(engine.tokenizer)
    yield compiler
    compiler.close()


def text_of(engine: Engine, grammar: CompiledGrammar, **params: Any) -> tuple[str, str | None]:
    generation = engine.generate("hello", Params(**{"temperature": 1.5, "seed": 1, **params}), grammar=grammar)
    return "".join(token.text for token in generation), generation.finish_reason


@each("seed", range(8))
def test_a_text_under_a_schema_is_valid_or_cut_by_its_length(engine: Engine, compiler: Compiler, seed: int) -> None:
    text, reason = text_of(engine, compiler.compile(Constraint.json_schema(PERSON)), seed=seed, max_new_tokens=90)
    assert reason == "stop"
    jsonschema.validate(json.loads(text), PERSON)


def test_a_text_that_the_length_cuts_says_so(engine: Engine, compiler: Compiler) -> None:
    text, reason = text_of(engine, compiler.compile(Constraint.json_schema(PERSON)), max_new_tokens=9)
    assert reason == "length"
    assert text.startswith("{")
    assert len(text) == 9


def test_a_text_that_is_complete_at_its_last_token_is_not_cut(engine: Engine, compiler: Compiler) -> None:
    assert text_of(engine, compiler.compile(Constraint.choice(["yes"])), max_new_tokens=3) == ("yes", "stop")


@pytest.mark.parametrize("seed", range(5))
def test_regular_expressions_choices_and_grammars_hold(engine: Engine, compiler: Compiler, seed: int) -> None:
    for constraint, pattern in (
        (Constraint.regex(r"[a-f]{3}-[0-9]{2}(x|yy)?"), r"[a-f]{3}-[0-9]{2}(x|yy)?"),
        (Constraint.choice(["red", "green", 'a "b"\n']), 'red|green|a "b"\n'),
        (Constraint.grammar('start: "a" rest\nrest: "b" | "c" rest "d"'), r"a(c*)bd*"),
        (Constraint.regex("[é中🙂]{2}"), "[é中🙂]{2}"),
    ):
        text, reason = text_of(engine, compiler.compile(constraint), seed=seed, max_new_tokens=90)
        assert reason in ("stop", "eos")
        assert re.fullmatch(pattern, text), text
        assert text.count("c") == text.count("d") or constraint.kind != "grammar" or text in ("red", "green", 'a "b"\n')


def test_the_model_decides_where_a_text_may_end_or_go_on(engine: Engine, compiler: Compiler) -> None:
    grammar = compiler.compile(Constraint.regex("a{1,40}"))
    ends = {text_of(engine, grammar, seed=seed, temperature=3, max_new_tokens=40) for seed in range(30)}
    assert {reason for _, reason in ends} == {"eos", "stop"} or {reason for _, reason in ends} == {"eos"}
    assert len(ends) > 1
    banned = {engine.manifest.model.eos_id: -100.0}
    assert text_of(engine, grammar, logit_bias=banned, max_new_tokens=60) == ("a" * 40, "stop")


def test_masks_of_texts_side_by_side_do_not_mix(engine: Engine, compiler: Compiler) -> None:
    grammar = compiler.compile(Constraint.json_schema(PERSON))
    each = [Params(temperature=1.5, seed=seed, max_new_tokens=60) for seed in range(6)]
    together = [one.text for one in engine.generate_many(["hello"] * 6, each, grammar=grammar, slots=3)]
    fresh = Engine(engine.session, engine.tokenizer)
    alone = ["".join(token.text for token in fresh.generate("hello", one, grammar=grammar)) for one in each]
    assert together == alone
    assert len(set(alone)) > 1


def test_log_probabilities_are_those_of_the_model_without_the_mask(engine: Engine, compiler: Compiler) -> None:
    """So they are not those of the distribution that was drawn from."""
    grammar = compiler.compile(Constraint.choice(["yes", "no"]))
    params = Params(temperature=0.3, seed=1, logprobs=4, logit_bias={5: 3}, frequency_penalty=1)
    tokens = list(engine.generate("hello", params, grammar=grammar))
    ids = engine.tokenizer.encode("hello")
    sequence = engine.session.sequence()
    step = sequence.prefill(ids)
    for token in tokens:
        wanted = token_logprob(step.logits[-1][: engine.tokenizer.size], token.id, 4)
        assert token.logprob == pytest.approx(wanted.logprob, abs=1e-5)
        assert token.top_logprobs == pytest.approx(wanted.top_logprobs, abs=1e-5)
        step = sequence.step(token.id)


def test_a_grammar_that_fails_in_a_text_ends_that_text_alone(engine: Engine, compiler: Compiler) -> None:
    class Broken:
        ended = False

        def mask(self) -> "Broken":
            return self

        def allowed(self) -> Any:
            raise UserError("found a grammar that cannot be followed")

        def accept(self, token: int) -> None:
            raise AssertionError

    loop = Loop(engine.session.batch(2))
    params = Params(temperature=0, max_new_tokens=5)
    bad, good = engine.request("hello", params, grammar=Broken()), engine.request("moon", params)
    loop.submit(bad)
    loop.submit(good)
    while loop.busy:
        loop.step()
    assert (bad.finish_reason, str(bad.error)) == ("error", "found a grammar that cannot be followed")
    assert good.finish_reason == "length"


def test_a_sampler_and_a_grammar_together_are_refused(engine: Engine, compiler: Compiler) -> None:
    class First:
        seed = 0

        def choose(self, logits: Any) -> int:
            return 0

    with pytest.raises(ValueError, match="both a sampler and a grammar"):
        engine.request("hello", Params(), sampler=First(), grammar=compiler.compile(Constraint.json_object()))


def schemas() -> st.SearchStrategy[Any]:
    """Return schemas of which a random text is short: bounded strings, numbers, lists and objects."""
    leaves = st.one_of(
        st.fixed_dictionaries({"type": st.just("integer")}, optional={"minimum": st.integers(-50, 0),
                              "maximum": st.integers(1, 2000)}),
        st.fixed_dictionaries({"type": st.just("number"), "minimum": st.integers(-9, 0), "maximum": st.integers(1, 9)}),
        st.fixed_dictionaries({"type": st.just("string"), "maxLength": st.integers(0, 6)}),
        st.sampled_from([{"type": "string", "pattern": text} for text in ("^[a-c]{1,3}$", "^x?y$", "^é+$")]),
        st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": {"a": [1, None]}}]),
        st.fixed_dictionaries({"enum": st.lists(st.sampled_from(["a", 1, None, True, "é\n", 1.5]), min_size=1)}),
    )  # fmt: skip

    def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        names = st.sampled_from(["a", "b", 'q"', "naïve", "", "a b"])
        return st.one_of(
            st.builds(
                lambda parts, required: {
                    "type": "object", "properties": parts, "required": sorted(set(parts) & required),
                    "additionalProperties": False,
                },
                st.dictionaries(names, inner, max_size=3), st.sets(names),
            ),
            st.builds(
                lambda part, least, more: {"type": "array", "items": part, "minItems": least, "maxItems": least + more},
                inner, st.integers(0, 2), st.integers(0, 2),
            ),
            st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=3)),
        )  # fmt: skip

    return st.recursive(leaves, nested, max_leaves=4)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(schema=schemas(), seed=st.integers(0, 1000))
def test_whatever_the_model_says_a_finished_text_is_valid_by_its_schema(
    engine: Engine, compiler: Compiler, schema: dict[str, Any], seed: int
) -> None:
    grammar = compiler.compile(Constraint.json_schema(schema))
    rng, mask, ids = np.random.default_rng(seed), grammar.mask(), []
    size = engine.tokenizer.size
    for _ in range(CONTEXT * 10):  # a model of random choices, which is faster than one that computes
        bits = np.unpackbits(mask.allowed().view(np.uint8), count=size, bitorder="little")
        token = int(rng.choice(np.flatnonzero(bits)))
        if token == engine.tokenizer.eos_id:
            break
        mask.accept(token)
        ids.append(token)
        if mask.ended:
            break
    else:
        return  # cut by its length
    text = engine.tokenizer.decode(ids)
    jsonschema.validate(json.loads(text), schema)
