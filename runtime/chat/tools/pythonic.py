"""Calls as a list of Python calls, `[get_weather(city="Paris")]`: LFM2 between markers, Llama 3.2 and 4 without."""

import ast
import json
import re
from typing import Any

from ....contract.generation_settings import ToolFormat
from .marked import MarkedParser
from .markers import overlap
from .parts import Part, Tools

BEGIN, END = ("<|tool_call_start|>", "<|python_start|>"), ("<|tool_call_end|>", "<|python_end|>")
MAX_ARGUMENTS = 100_000
"""Characters of the arguments of a call."""
_HEAD = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*\(")
_MAYBE_HEAD = re.compile(r"\s*([A-Za-z_][\w.-]*)?\s*")
CONSTANTS = {"true": True, "false": False, "null": None}


class PythonicParser(MarkedParser):
    """Reads calls that are Python; a list without a marker is one where it begins the answer and names a tool."""

    markers = BEGIN
    shown = (*BEGIN, *END)

    def __init__(self, format: ToolFormat, tools: Tools) -> None:
        super().__init__(format, tools)
        self._at_start = True
        self._state = "list"
        self._name = self._held = self._quote = ""
        self._escaped = False
        self._depth = 0

    def enter(self, marker: str) -> None:
        """Begin to read a list of calls."""
        super().enter(marker)
        self._at_start, self._state = False, "list"

    def _text(self) -> list[Part]:
        if self._at_start:
            start = self._pending.lstrip()
            if start.startswith("["):
                blank = self._pending[: len(self._pending) - len(start)]
                self._pending = start
                self.enter(blank)
                return []
            if not start or any(overlap(start, marker) == len(start) for marker in BEGIN):
                return []
            self._at_start = False
        return super()._text()

    def _call(self) -> list[Part]:
        match self._state:
            case "list":
                return self._expect("[", "name")
            case "name":
                return self._read_name()
            case "arguments":
                return self._read_arguments()
            case "next":
                return self._read_next()
        end = next((one for one in END if self._pending.lstrip().startswith(one)), None)
        rest = self._pending.lstrip()
        if end is None and rest and any(overlap(rest, one) == len(rest) for one in END):
            return []
        if rest:
            self._pending = rest.removeprefix(end or "")
            self.leave()
        return []

    def _expect(self, char: str, state: str) -> list[Part]:
        rest = self._pending.lstrip()
        if not rest:
            return []
        if rest[0] != char:
            return self.give_up()
        self.take(len(self._pending) - len(rest) + 1)
        self._state = state
        return []

    def _read_name(self) -> list[Part]:
        head = _HEAD.match(self._pending)
        if head is None:
            return [] if _MAYBE_HEAD.fullmatch(self._pending) else self.give_up()
        if self._raw.lstrip()[:1] == "[" and head[1] not in self.tools:  # no marker said that it is a call
            return self.give_up()
        self.take(head.end())
        self._name, self._held, self._state, self._depth, self._quote = head[1], "", "arguments", 1, ""
        self._escaped = False
        return []

    def _read_arguments(self) -> list[Part]:
        for place, char in enumerate(self._pending, 1):
            if self._quote:
                if self._escaped or char == "\\":
                    self._escaped = not self._escaped
                elif char == self._quote:
                    self._quote = ""
            elif char in "'\"":
                self._quote = char
            else:
                self._depth += (char in "([{") - (char in ")]}")
                if not self._depth:
                    self._held += self._pending[: place - 1]
                    self.take(place)
                    return self._whole_call()
        self._held += self.take(len(self._pending))
        return self.give_up() if len(self._held) > MAX_ARGUMENTS else []

    def _whole_call(self) -> list[Part]:
        arguments = json_arguments(self._held, list(self.tools.get(self._name, {}).get("properties", {})))
        if arguments is None:
            return self.give_up()
        self._state = "next"
        begun = self._begun
        part = self.begin_call(self._name)
        self._begun = begun or self._begun
        return [part, *self.arguments(arguments)]

    def _read_next(self) -> list[Part]:
        rest = self._pending.lstrip()
        if rest:
            self._state = "name" if rest[0] == "," else "end"
            self._pending = rest[1:] if rest[0] in ",]" else rest
        return []


def json_arguments(source: str, names: list[str]) -> str | None:
    """Return the arguments of a Python call as JSON; None where they are no constants.

    Args:
        source: What stands between the parentheses.
        names: The names of positional arguments.
    """
    try:
        call = ast.parse(f"f({source})", mode="eval").body
        if not isinstance(call, ast.Call) or len(call.args) > len(names):
            return None
        values = dict(zip(names, map(constant, call.args), strict=False))
        for keyword in call.keywords:
            if keyword.arg is None or keyword.arg in values:
                return None
            values[keyword.arg] = constant(keyword.value)
        return json.dumps(values, ensure_ascii=False, allow_nan=False)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def constant(node: ast.expr) -> Any:
    """Return the value of a constant, in which those of JSON may be spelled as in JSON.

    Raises:
        ValueError: It is no constant.
    """
    if isinstance(node, ast.Name) and node.id in CONSTANTS:
        return CONSTANTS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [constant(one) for one in node.elts]
    if isinstance(node, ast.Dict):
        return {
            ast.literal_eval(key) if key else None: constant(v) for key, v in zip(node.keys, node.values, strict=True)
        }
    return ast.literal_eval(node)
