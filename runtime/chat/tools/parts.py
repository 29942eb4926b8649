"""The parts of an answer that may call tools: its text, and its calls as they grow."""

import json
import secrets
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ....contract.generation_settings import ToolFormat

Tools = Mapping[str, Mapping[str, Any]]
"""The JSON schema of the arguments of each tool, by its name."""
MISTRAL_ID = 9
"""Characters of an id that Mistral's templates accept."""


@dataclass(frozen=True)
class TextPart:
    """More text of the answer."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """A call begins."""

    index: int
    """Its number in the answer, from 0."""
    id: str
    name: str


@dataclass(frozen=True)
class ArgumentsPart:
    """More of the arguments of a call, as JSON text."""

    index: int
    text: str


Part = TextPart | CallBegin | ArgumentsPart


class ToolParser(Protocol):
    """Reads the text of an answer piece by piece. No part of a marker is ever returned as text."""

    def push(self, text: str) -> list[Part]:
        """Add text, and return the parts that became certain."""

    def flush(self) -> list[Part]:
        """Return what is left at the end; a call that did not become one is text."""


@dataclass(frozen=True)
class ToolCall:
    """A whole call."""

    id: str
    name: str
    arguments: str
    """As JSON text; incomplete where the answer was cut."""

    @property
    def complete_arguments(self) -> dict[str, Any]:
        """The arguments; empty where they are cut or no JSON object."""
        try:
            value = json.loads(self.arguments)
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def message(self) -> dict[str, Any]:
        """The call in a turn of a conversation, in the shape of OpenAI's."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class Answer:
    """The text and the calls of an answer, put together from its parts."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._calls: list[tuple[str, str, list[str]]] = []

    def add(self, parts: Iterable[Part]) -> None:
        """Add parts in their order."""
        for part in parts:
            if isinstance(part, TextPart):
                self._pieces.append(part.text)
            elif isinstance(part, CallBegin):
                self._calls.append((part.id, part.name, []))
            else:
                self._calls[part.index][2].append(part.text)

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._pieces)

    @property
    def calls(self) -> list[ToolCall]:
        """The calls so far."""
        return [ToolCall(number, name, "".join(pieces)) for number, name, pieces in self._calls]


def new_call_id(format: ToolFormat) -> str:
    """Make an id that no other call has, as the templates of that format take it."""
    if format == "mistral":
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(MISTRAL_ID))
    return f"call_{secrets.token_hex(12)}"


def tools_of(tools: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the arguments of tools in OpenAI's shape, by name; a tool without any takes none."""
    none = {"type": "object", "properties": {}, "additionalProperties": False}
    return {tool["function"]["name"]: tool["function"].get("parameters") or none for tool in tools}
