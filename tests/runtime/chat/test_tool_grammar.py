"""Any text that the grammar of required calls lets through is read back as calls that fit the schemas."""

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from support.cases import each
from support.graphs.tiny_graph import EOS, byte_tokenizer

from adaptive_lm.contract.generation_settings import ToolFormat
from adaptive_lm.runtime import Tokenizer
from adaptive_lm.runtime.chat.tools.formats import PARSERS, parser_of
from adaptive_lm.runtime.chat.tools.grammar import tool_grammar
from adaptive_lm.runtime.chat.tools.parts import Answer, tools_of
from adaptive_lm.runtime.structured.compiler import Compiler
from adaptive_lm.runtime.structured.constraint import Constraint

pytest.importorskip("llguidance")
MARKERS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|tool_call_start|>", "<|tool_call_end|>"]
WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"enum": ["Paris", "Os\"lo'"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "rain": {"type": "boolean"},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
}
FLAGS = {"a": {"type": "boolean"}, "b": {"type": "null"}}
OPTIONAL = {
    "name": "all_optional",
    "parameters": {"type": "object", "properties": FLAGS, "additionalProperties": False},
}
TOOLS = tools_of([{"function": one} for one in (WEATHER, OPTIONAL, {"name": "now"})])
CASES: list[tuple[ToolFormat, str]] = [
    ("hermes", ""),
    ("mistral", ""),
    ("mistral", "[ARGS]"),
    ("llama3_json", ""),
    ("pythonic", ""),
    ("pythonic", "<|tool_call_start|>"),
]


@pytest.fixture(scope="module", params=[True, False], ids=["special", "text"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Return a tokenizer of bytes whose markers are special tokens, or plain text."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    library = byte_tokenizer()
    library.add_special_tokens(["<|other_end|>", *(MARKERS if request.param else [])])
    library.save(str(path))
    return Tokenizer(path, size=library.get_vocab_size(), eos_id=EOS, ends=[EOS + 1])


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> Iterator[Compiler]:
    compiler = Compiler(tokenizer)
    yield compiler
    compiler.close()


def written(compiler: Compiler, tokenizer: Tokenizer, source: str, seed: int) -> str:
    """Return a text that a model with random wishes writes under a grammar."""
    choice, mask = random.Random(seed), compiler.compile(Constraint.grammar(source)).mask()
    stream = tokenizer.stream([], show=True)
    text = ""
    for _ in range(2000):
        words = mask.allowed()
        allowed = [n for n in range(tokenizer.size) if int(words[n // 32]) >> (n % 32) & 1]
        assert allowed
        if EOS in allowed:
            assert EOS + 1 in allowed, "any of the ends"
        token = choice.choice(allowed)
        if token in tokenizer.ends:
            break
        mask.accept(token)
        text += stream.push(token)
        if mask.ended:
            break
    else:
        pytest.fail("it did not end")
    return text


@each("parallel", [False, True])
@each(("kind", "template"), CASES)
def test_what_the_grammar_lets_through_is_read_back(
    compiler: Compiler, tokenizer: Tokenizer, kind: ToolFormat, template: str, parallel: bool
) -> None:
    source = tool_grammar(kind, template, TOOLS, tokenizer.special_id, parallel=parallel)
    names: set[str] = set()
    most = 0
    for seed in range(25):
        text = written(compiler, tokenizer, source, seed)
        parser, answer = parser_of(kind, TOOLS), Answer()
        answer.add(part for char in text for part in parser.push(char))
        answer.add(parser.flush())
        assert answer.text == "", text
        assert answer.calls, text
        most = max(most, len(answer.calls))
        for call in answer.calls:
            names.add(call.name)
            check(call.name, json.loads(call.arguments))
    assert names == set(TOOLS)
    assert (most > 1) == parallel


def check(name: str, given: dict[str, Any]) -> None:
    """Check arguments by hand."""
    if name == "weather":
        assert given["city"] in ("Paris", "Os\"lo'")
        assert 1 <= given.get("days", 1) <= 9
        assert given.get("rain", True) in (True, False)
    assert set(given) <= set(TOOLS[name]["properties"])


def test_every_parser_names_the_markers_that_must_be_shown() -> None:
    for parser in PARSERS.values():
        assert set(parser.markers) <= set(parser.shown)
