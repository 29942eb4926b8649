"""Rules that cannot be used, and hostile ones (S11): answered within a bound, and nothing else is harmed."""

import contextlib
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.cases import each

from adaptive_lm.runtime import Engine, UserError
from adaptive_lm.runtime.structured import compiler as compiler_module
from adaptive_lm.runtime.structured.compiler import CACHED, LIMITS, MOST_COMPILING, BusyError, Compiler
from adaptive_lm.runtime.structured.constraint import MAX_SOURCE, Constraint
from adaptive_lm.runtime.structured.trial import Trial

llguidance = pytest.importorskip("llguidance")


@pytest.fixture(scope="module")
def compiler(engine: Engine) -> Iterator[Compiler]:
    compiler = Compiler(engine.tokenizer)
    yield compiler
    compiler.close()


def nested(levels: int) -> str:
    return '{"type":"object","properties":{"a":' * levels + '{"type":"integer"}' + "}}" * levels


@each(
    ("constraint", "message"),
    [
        (Constraint.json_schema({"type": "strnig"}), "found a JSON schema that cannot be used: Invalid type: strnig"),
        (Constraint.json_schema({"type": "array", "uniqueItems": True}), 'Unimplemented keys: ["uniqueItems"]'),
        (Constraint.json_schema({"$ref": "http://127.0.0.1:1/a.json"}), "found a JSON schema that cannot be used: "),
        (Constraint.json_schema({"$ref": "#"}), "it matches no text"),
        (Constraint.json_schema(False), "it matches no text"),
        (Constraint.json_schema(nested(100)), "found a JSON schema that cannot be used: "),
        (Constraint.regex("(a"), "found a regular expression that cannot be used: unclosed group"),
        (Constraint.regex(r"(a)\1"), "backreferences are not supported"),
        (Constraint.regex("(?=a)b"), "look-around"),
        (Constraint.regex(r"[^\s\S]"), "it matches no text"),
        (Constraint.regex("(" * 5000 + "a" + ")" * 5000), "found a regular expression that cannot be used: "),
        (Constraint.grammar("x: 'a'"), "found a grammar that cannot be used: "),
        (Constraint.grammar('start: <|endoftext|> "a"'), "found a grammar that cannot be used: "),
    ],
)
def test_a_rule_that_cannot_be_used_says_why(compiler: Compiler, constraint: Constraint, message: str) -> None:
    with pytest.raises(UserError) as error:
        compiler.compile(constraint)
    assert message in str(error.value)
    assert str(error.value).endswith("; correct or simplify it")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@each(
    "make",
    [
        lambda: Constraint.json_schema("["),
        lambda: Constraint.json_schema("[]"),
        lambda: Constraint.json_schema("NaN"),
        lambda: Constraint.json_schema({"minimum": float("nan")}),
        lambda: Constraint.json_schema("[" * 100_000),
        lambda: Constraint.json_schema(nested(20_000)),
        lambda: Constraint.json_schema({"enum": ["x" * MAX_SOURCE]}),
        lambda: Constraint.json_schema({"const": "\udcff"}),
        lambda: Constraint.regex("a" * (MAX_SOURCE + 1)),
        lambda: Constraint.regex("\ud800"),
        lambda: Constraint.choice([]),
        lambda: Constraint.choice(["a", ""]),
        lambda: Constraint.choice([1]),  # type: ignore[list-item]
    ],
)
def test_what_is_no_rule_is_refused_before_it_is_compiled(make: Any) -> None:
    with pytest.raises(UserError, match=r"^found .*; .*"):
        make()


HOSTILE = [
    Constraint.regex("(a+)+$"),
    Constraint.regex("(a|a)*b"),
    Constraint.regex("((a{1,100}){1,100}){1,100}"),
    Constraint.regex("(a{1000}){1000}"),
    Constraint.regex("(.*a){1,300}b"),
    Constraint.regex("(a|b)*a(a|b){500}"),
    Constraint.json_schema({"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}),
    Constraint.json_schema({"type": "string", "minLength": 10**6, "maxLength": 10**9}),
    Constraint.json_schema({"type": "array", "minItems": 10**6}),
    Constraint.json_schema({"allOf": [{"anyOf": [{"properties": {f"{i}{j}": {}}} for j in "ab"]} for i in range(24)]}),
    Constraint.json_schema({"enum": [f"value {number}" for number in range(4000)]}),
    Constraint.grammar("start: a0\n" + "\n".join(f"a{n}: a{n + 1} a{n + 1}" for n in range(60)) + '\na60: "x"'),
    Constraint.grammar('start: start start | "b" | ""'),
]  # fmt: skip


@each("constraint", HOSTILE)
def test_a_hostile_rule_is_refused_or_followed_within_bounds(compiler: Compiler, constraint: Constraint) -> None:
    """No step of it takes long, whatever the text."""
    begin = time.thread_time()
    with contextlib.suppress(UserError):
        mask = compiler.compile(constraint).mask()
        for token in itertools.chain(b'"', itertools.repeat(ord("a"), 40)):
            words = mask.allowed()
            if words[token // 32] >> (token % 32) & 1:
                mask.accept(token)
            if mask.ended:
                break
    assert time.thread_time() - begin < 2  # of this process; measured: at most 0.3


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint.json_schema({"type": "integer", "multipleOf": 12345678}),
        Constraint.json_schema({"allOf": [{"multipleOf": number} for number in (9973, 9967, 9949)]}),
        Constraint.grammar('start: %json {"type": "integer", "multipleOf": 12345678}'),
    ],
)
def test_a_rule_that_takes_for_ever_is_refused_and_the_next_one_compiles(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, constraint: Constraint
) -> None:
    monkeypatch.setattr(compiler_module, "SECONDS", 0.3)
    compiler = Compiler(engine.tokenizer)
    with pytest.raises(UserError, match=r"cannot be used: it takes (more than 0.3 s to compile|too much memory)"):
        compiler.compile(constraint)
    monkeypatch.undo()
    compiler.close()
    compiler = Compiler(engine.tokenizer)
    assert compiler.compile(Constraint.regex("a")).mask().allowed().any()
    compiler.close()


def test_a_process_that_dies_is_started_again() -> None:
    trial = Trial(10)
    grammar = llguidance.LLMatcher.grammar_from_regex("a+")
    assert trial.error_of(grammar, LIMITS) == ""
    process = trial.process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert trial.error_of(grammar, LIMITS) == ""
    trial.close()
    assert trial.process is None
    assert trial.error_of(grammar, LIMITS) == ""
    trial.close()


def test_a_process_that_is_stopped_in_the_middle_says_so() -> None:
    trial = Trial(0.2)
    assert trial.error_of(llguidance.LLMatcher.grammar_from_regex("a+"), LIMITS) == ""
    assert trial.process is not None
    os.kill(trial.process.pid, signal.SIGSTOP)
    error = trial.error_of(llguidance.LLMatcher.grammar_from_regex("b+"), LIMITS)
    assert error == "it takes more than 0.2 s to compile"
    assert trial.process is None, "it was killed"
    trial.close()


def test_a_rule_that_could_not_be_used_is_refused_at_once_for_a_while(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a client that repeats it does not hold the process that compiles."""
    now, tried = [0.0], []
    compiler = Compiler(engine.tokenizer, clock=lambda: now[0])

    def slow(trial: Trial, grammar: str, limits: Any, ids: int) -> str:
        tried.append(grammar)
        return "it takes more than 3 s to compile"

    monkeypatch.setattr(Trial, "error_of", slow)
    for moment in (0, 1, 59, 61, 100, 122):
        now[0] = moment
        with pytest.raises(UserError, match="it takes more than 3 s to compile; correct or simplify it"):
            compiler.compile(Constraint.regex("a"))
    assert len(tried) == 3


def test_a_rule_is_refused_where_too_many_wait(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler, gate = Compiler(engine.tokenizer), threading.Event()
    known = compiler.compile(Constraint.regex("known"))
    true, waiting = Trial.error_of, threading.Semaphore(0)

    def slow(trial: Trial, grammar: str, limits: Any, ids: int) -> str:
        waiting.release()
        assert gate.wait(10)
        return true(trial, grammar, limits, ids)

    monkeypatch.setattr(Trial, "error_of", slow)
    rules = [Constraint.regex(f"a{number}") for number in range(MOST_COMPILING)]
    threads = [threading.Thread(target=compiler.compile, args=(rule,)) for rule in rules]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert waiting.acquire(timeout=10)
    with pytest.raises(BusyError, match=f"found {MOST_COMPILING} rules that wait to be compiled, expected fewer; try"):
        compiler.compile(Constraint.regex("b"))
    assert compiler.compile(Constraint.regex("known")) is known
    gate.set()
    for thread in threads:
        thread.join()
    assert compiler.compile(Constraint.regex("b")).mask().allowed().any()
    compiler.close()


def test_grammars_are_kept_by_their_source_and_those_used_last(engine: Engine) -> None:
    compiler = Compiler(engine.tokenizer)
    first = compiler.compile(Constraint.regex("a0"))
    for number in range(1, CACHED):
        compiler.compile(Constraint.regex(f"a{number}"))
    assert compiler.compile(Constraint.regex("a0")) is first
    second = compiler.compile(Constraint.regex("a1"))
    compiler.compile(Constraint.regex("b"))
    compiler.compile(Constraint.regex("c"))
    assert compiler.compile(Constraint.regex("a0")) is first
    assert compiler.compile(Constraint.regex("a1")) is second
    compiler.close()


def test_masks_of_one_grammar_are_independent(compiler: Compiler) -> None:
    grammar = compiler.compile(Constraint.regex("ab|ba"))
    one, other = grammar.mask(), grammar.mask()
    one.accept(ord("a"))
    other.accept(ord("b"))
    one.accept(ord("b"))
    assert (one.ended, other.ended) == (True, False)
    other.accept(ord("a"))
    assert other.ended
    assert not grammar.mask().ended


def test_many_threads_may_compile_and_follow(compiler: Compiler) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                mask = compiler.compile(Constraint.regex(f"(x{(number + turn) % 4})+")).mask()
                for byte in f"x{(number + turn) % 4}".encode() * 3:
                    assert mask.allowed()[byte // 32] >> (byte % 32) & 1
                    mask.accept(byte)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(MOST_COMPILING)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_whitespace_between_the_parts_of_json_ends(compiler: Compiler) -> None:
    """A model that likes spaces best still comes to an end."""
    mask = compiler.compile(Constraint.json_object()).mask()
    mask.accept(ord("{"))
    spaces = 0
    for character in (ord("\n"), *[ord(" ")] * 100):
        if not mask.allowed()[character // 32] >> (character % 32) & 1:
            break
        mask.accept(character)
        spaces += 1
    assert spaces == 21


@pytest.mark.parametrize("schema", [True, {}, "true", json.dumps({"type": "object"})])
def test_schemas_of_anything_are_allowed(compiler: Compiler, schema: Any) -> None:
    assert compiler.compile(Constraint.json_schema(schema)).mask().allowed().any()
