"""The grammar of an answer that must call tools, in the dialect of Lark that llguidance reads."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from ....contract.generation_settings import ToolFormat
from .hermes import BEGIN as HERMES_BEGIN
from .hermes import END as HERMES_END
from .mistral import ARGS
from .mistral import BEGIN as MISTRAL_BEGIN
from .parts import Tools
from .pythonic import BEGIN as PYTHONIC_BEGIN
from .pythonic import END as PYTHONIC_END

WHITESPACE = r"( |\n[ \t]{0,20})"
"""Between the parts of JSON, once; unlimited, a model can write it for ever."""
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")

SpecialId = Callable[[str], int | None]
"""Returns the id of a marker that is a special token; None where it is text."""


def tool_grammar(format: ToolFormat, template: str, tools: Tools, special: SpecialId, *, parallel: bool) -> str:
    """Return the grammar of an answer that calls one of `tools`, or several where `parallel`.

    Args:
        format: How the model writes calls.
        template: Its chat template, which shows the markers in use.
        tools: The tools.
        special: The ids of markers.
        parallel: Whether the answer may have several calls.
    """

    def marker(text: str) -> str:
        number = special(text)
        return literal(text) if number is None else f"<[{number}]>"

    several = '"[" call (", " call)* "]"' if parallel else '"[" call "]"'
    if format == "hermes":
        call = f'{marker(HERMES_BEGIN)} "\\n" object "\\n" {marker(HERMES_END)}'
        return rules(start='call ("\\n" call)*' if parallel else "call", call=call, object=objects(tools, "arguments"))
    if format == "llama3_json":
        return rules(start='call ("; " call)*' if parallel else "call", call=objects(tools, "parameters"))
    if format == "mistral" and ARGS in template:
        calls = (f"{literal(name)} {marker(ARGS)} {json_of(schema)}" for name, schema in tools.items())
        call = f"{marker(MISTRAL_BEGIN)} ({' | '.join(calls)})"
        return rules(start="call+" if parallel else "call", call=call)
    if format == "mistral":
        return rules(start=f"{marker(MISTRAL_BEGIN)} {several}", call=objects(tools, "arguments"))
    edges = zip(PYTHONIC_BEGIN, PYTHONIC_END, strict=True)
    begin, end = next(((marker(begin), marker(end)) for begin, end in edges if begin in template), ("", ""))
    calls = (f"{literal(name + '(')} {python_of(schema)} {literal(')')}" for name, schema in tools.items())
    return rules(start=f"{begin} {several} {end}", call=" | ".join(calls))


def objects(tools: Tools, key: str) -> str:
    """Write the calls as JSON objects with a name and, by `key`, the arguments."""
    heads = {name: f'{{"name": {json.dumps(name)}, "{key}": ' for name in tools}
    return " | ".join(f"{literal(heads[name])} {json_of(schema)} {literal('}')}" for name, schema in tools.items())


def rules(**rules: str) -> str:
    """Write rules."""
    return "\n".join(f"{name}: {rule}" for name, rule in rules.items())


def literal(text: str) -> str:
    """Write a text as a literal."""
    return json.dumps(text, ensure_ascii=False)


def json_of(schema: Mapping[str, Any]) -> str:
    """Write JSON that is valid by a schema."""
    return "%json " + json.dumps({**schema, "x-guidance": {"whitespace_pattern": WHITESPACE}}, ensure_ascii=False)


def python_of(schema: Mapping[str, Any]) -> str:
    """Write the arguments of a Python call, whose values are JSON, in the order of the schema: first those required."""
    shared = {key: value for key, value in schema.items() if key in ("$defs", "definitions")}
    properties = {name: one for name, one in schema.get("properties", {}).items() if _IDENTIFIER.fullmatch(name)}
    given = {name: f"{literal(name + '=')} {json_of({**shared, **one})}" for name, one in properties.items()}
    required = [name for name in properties if name in schema.get("required", [])]
    optional = [name for name in properties if name not in required]
    if required:
        parts = [given[required[0]], *(f'", " {given[name]}' for name in required[1:])]
        return " ".join([*parts, *(f'(", " {given[name]})?' for name in optional)])
    ways = []
    for place, name in enumerate(optional):
        rest = " ".join(f'(", " {given[other]})?' for other in optional[place + 1 :])
        ways.append(f"{given[name]} {rest}")
    return f"({' | '.join(ways)})?" if ways else '""'
