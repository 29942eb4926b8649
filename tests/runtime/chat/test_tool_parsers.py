"""The calls that a model writes come back whole, however its text is cut, and no part of a marker is ever shown."""

import json
import random
from typing import Any, get_args

import pytest
from support.cases import each

from adaptive_lm.contract.generation_settings import ToolFormat
from adaptive_lm.runtime.chat.tools.formats import format_of_template, parser_of
from adaptive_lm.runtime.chat.tools.parts import Answer, ArgumentsPart, CallBegin, TextPart

TOOLS = {
    "get_weather": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "now": {"type": "object", "properties": {}},
}
PARIS = ("get_weather", {"city": 'Paris {"é"} ]', "days": 2})
NESTED = ("get_weather", {"city": "a\\b\n中", "days": [1, {"x": [True, None, -1.5e3]}]})
NOW: tuple[str, dict[str, Any]] = ("now", {})


def arguments(call: tuple[str, Any]) -> str:
    return json.dumps(call[1], ensure_ascii=False)


def hermes(*calls: tuple[str, Any]) -> str:
    return "\n".join(
        f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(given, ensure_ascii=False)}}}\n</tool_call>'
        for name, given in calls
    )


def mistral(*calls: tuple[str, Any]) -> str:
    return "[TOOL_CALLS] " + json.dumps([{"name": name, "arguments": given} for name, given in calls])


def mistral_new(*calls: tuple[str, Any]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[CALL_ID]abcdefghi[ARGS]{json.dumps(given)}" for name, given in calls)


def llama(*calls: tuple[str, Any]) -> str:
    return "; ".join(json.dumps({"name": name, "parameters": given}) for name, given in calls)


def tagged(*calls: tuple[str, Any]) -> str:
    return "<|python_tag|>" + llama(*calls)


def pythonic(*calls: tuple[str, Any]) -> str:
    return (
        "["
        + ", ".join(
            f"{name}(" + ", ".join(f"{key}={value!r}" for key, value in given.items()) + ")" for name, given in calls
        )
        + "]"
    )


def marked(*calls: tuple[str, Any]) -> str:
    return f"<|tool_call_start|>{pythonic(*calls)}<|tool_call_end|>"


WRITERS = {
    "hermes": ("hermes", hermes),
    "mistral": ("mistral", mistral),
    "mistral, new": ("mistral", mistral_new),
    "llama": ("llama3_json", llama),
    "llama with its tag": ("llama3_json", tagged),
    "pythonic": ("pythonic", pythonic),
    "pythonic with markers": ("pythonic", marked),
}
MARKED = ["hermes", "mistral", "mistral, new", "llama with its tag", "pythonic with markers"]
MARKERS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>",
           "<|tool_call_start|>", "<|tool_call_end|>"]  # fmt: skip


def read(kind: ToolFormat, pieces: list[str]) -> tuple[str, list[tuple[str, Any]]]:
    """Return the text and the calls; the parts must fit together, and no piece of text may hold a part of a marker."""
    parser, answer, begun = parser_of(kind, TOOLS), Answer(), 0
    parts = [part for piece in pieces for part in parser.push(piece)] + parser.flush()
    for part in parts:
        if isinstance(part, CallBegin):
            assert part.index == begun
            begun += 1
        elif isinstance(part, ArgumentsPart):
            assert part.index == begun - 1
        else:
            assert isinstance(part, TextPart)
            assert part.text
    answer.add(parts)
    assert len({call.id for call in answer.calls}) == len(answer.calls)
    return answer.text, [(call.name, json.loads(call.arguments)) for call in answer.calls]


def cuts(text: str, rng: random.Random) -> list[list[str]]:
    """Cut a text in every place once, into single characters, and at random."""
    ways = [[text[:place], text[place:]] for place in range(len(text) + 1)]
    ways.append(list(text))
    for _ in range(20):
        places = sorted(rng.choices(range(len(text) + 1), k=4))
        ways.append([text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)])
    return ways


@each("writer", WRITERS)
@each("calls", [[PARIS], [PARIS, NESTED], [NESTED, PARIS, PARIS]])
def test_calls_come_back_however_the_text_is_cut(writer: str, calls: list[tuple[str, Any]]) -> None:
    kind, write = WRITERS[writer]
    for pieces in cuts(write(*calls), random.Random(1)):
        assert read(kind, pieces) == ("", calls), pieces


@pytest.mark.parametrize("writer", MARKED)
def test_text_before_a_marker_is_shown_without_the_space_between(writer: str) -> None:
    kind, write = WRITERS[writer]
    for pieces in cuts("  I look.\n\n" + write(PARIS), random.Random(2)):
        assert read(kind, pieces) == ("  I look.", [PARIS]), pieces


@pytest.mark.parametrize("writer", ["hermes", "mistral", "pythonic with markers"])
def test_text_after_a_call_is_shown(writer: str) -> None:
    kind, write = WRITERS[writer]
    for pieces in cuts(write(PARIS) + "\n Done.", random.Random(3)):
        text, calls = read(kind, pieces)
        assert (text.strip(), calls) == ("Done.", [PARIS]), pieces


@each("kind", get_args(ToolFormat))
@each(
    "text",
    ["Hello, world.\n", "a < b and [x] {y}", "", "  \n", '{"city": "Paris"}', '{"name": "nobody", "parameters": {}}',
     "[1, 2]", "[a](b) and [unknown(x=1)]", "<tool", "[TOOL", "<|python_ta", "<|tool_call_st", "{", "[", "{\"a\"",
     "[get_weather"],
)  # fmt: skip
def test_an_answer_without_a_call_stays_as_it_is(kind: ToolFormat, text: str) -> None:
    for pieces in cuts(text, random.Random(4)):
        assert read(kind, pieces) == (text, []), pieces


@pytest.mark.parametrize("writer", MARKED)
def test_no_part_of_a_marker_is_shown_while_the_text_grows(writer: str) -> None:
    kind, write = WRITERS[writer]
    parser, shown = parser_of(kind, TOOLS), ""
    for char in "So: " + write(PARIS, NESTED):
        shown += "".join(part.text for part in parser.push(char) if isinstance(part, TextPart))
        assert not any(shown.endswith(marker[:length]) for marker in MARKERS for length in range(1, len(marker) + 1))
    assert shown == "So:"


@pytest.mark.parametrize("writer", ["hermes", "mistral", "mistral, new", "llama"])
def test_arguments_come_as_they_are_written_not_at_the_end(writer: str) -> None:
    kind, write = WRITERS[writer]
    parser, pieces = parser_of(kind, TOOLS), 0
    for char in write(PARIS):
        pieces += sum(isinstance(part, ArgumentsPart) for part in parser.push(char))
    assert pieces > 10


@each(
    ("text", "expected"),
    [
        ('<tool_call>{"arguments": {"city": "P"}, "name": "get_weather"}', [("get_weather", {"city": "P"})]),
        ('<tool_call>{"name": "now"}</tool_call>', [NOW]),
        ('<tool_call>{"name": "now", "arguments": null}</tool_call>', [NOW]),
        ('<tool_call>{"name": "now", "arguments": "{\\"x\\": 1}"}</tool_call>', [("now", {"x": 1})]),
        ('<tool_call>{"id": 7, "type": "function", "name": "now"}<tool_call>{"name": "now"}', [NOW, NOW]),
        ('<tool_call>{"name": "other", "arguments": {}}</tool_call>', [("other", {})]),
    ],
)  # fmt: skip
def test_other_spellings_of_a_call_are_read(text: str, expected: list[Any]) -> None:
    for pieces in cuts(text, random.Random(5)):
        assert read("hermes", pieces) == ("", expected), pieces


@each(
    "text",
    ["<tool_call>hello</tool_call>", '<tool_call>{"name": 1}</tool_call>', '<tool_call>{"x": 1}</tool_call>',
     '<tool_call>{"name": "f", "arguments": 5}</tool_call>', "<tool_call>\n{\"na", "<tool_call>"],
)  # fmt: skip
def test_what_did_not_become_a_call_is_text(text: str) -> None:
    for pieces in cuts(text, random.Random(6)):
        assert read("hermes", pieces) == (text, []), pieces


@pytest.mark.parametrize("writer", ["hermes", "mistral", "mistral, new", "llama"])
def test_a_call_that_is_cut_keeps_its_name_and_the_beginning_of_its_arguments(writer: str) -> None:
    kind, write = WRITERS[writer]
    text = write(PARIS)
    text = text[: text.index("Par") + 2]
    for pieces in cuts(text, random.Random(7)):
        parser, answer = parser_of(kind, TOOLS), Answer()
        answer.add(part for piece in pieces for part in parser.push(piece))
        answer.add(parser.flush())
        assert answer.text == ""
        assert [(call.name, call.arguments) for call in answer.calls] == [("get_weather", '{"city": "Pa')]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("city='P', days=+2", {"city": "P", "days": 2}),
        ("'P', 3", {"city": "P", "days": 3}),
        ("city=[True, false, None, null], days=(1, 2)", {"city": [True, False, None, None], "days": [1, 2]}),
        ("city={'a': {\"b\": -1.5}}", {"city": {"a": {"b": -1.5}}}),
        ("", {}),
    ],
)
def test_python_arguments_are_read_as_constants(source: str, expected: dict[str, Any]) -> None:
    assert read("pythonic", [f"[get_weather({source})]"]) == ("", [("get_weather", expected)])


@each(
    "source",
    ["city=open('x')", "__import__('os')", "city=1, city=2", "**{}", "1, 2, 3", "city=1e999", "city=b'x'",
     "city={1, 2}", "city=" + "(" * 3000 + ")" * 3000, "city=x", "city=1 +"],
)  # fmt: skip
def test_python_that_is_no_constant_is_text(source: str) -> None:
    text = f"[get_weather({source})]"
    assert read("pythonic", [text]) == (text, [])


def test_ids_are_those_that_mistrals_templates_take() -> None:
    parser = parser_of("mistral", TOOLS)
    (begin,) = [part for part in parser.push(mistral(PARIS)) if isinstance(part, CallBegin)]
    assert len(begin.id) == 9
    assert begin.id.isalnum()


@each(
    ("template", "kind"),
    [("{{ '<tool_call>' }}", "hermes"), ("[AVAILABLE_TOOLS][TOOL_CALLS]", "mistral"), ("<|python_tag|>", "llama3_json"),
     ("<|tool_call_start|>", "pythonic"), ("{{ tools }}", None),
     ("<tool_call><function=f>", None)],
)  # fmt: skip
def test_the_format_is_recognised_from_the_template(template: str, kind: ToolFormat | None) -> None:
    assert format_of_template(template) == kind
