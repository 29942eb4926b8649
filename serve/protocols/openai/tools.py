"""Tools in the body of a chat, and calls of tools in its turns and answers."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ..body import Body

MAX_TOOLS = 128
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Function(Body):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema of its arguments; left out where it has none."""
    strict: bool | None = None


class Tool(Body):
    """A tool: a function."""

    type: Literal["function"]
    function: Function


def different(tools: list[Tool]) -> list[Tool]:
    """Return tools whose names differ.

    Raises:
        ValueError: Two have one name.
    """
    names = [tool.function.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"found two tools named {twice!r}, expected a name for each; rename one")
    return tools


class FunctionName(Body):
    """The name of a function."""

    name: Name


class NamedTool(Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedTool
"""Whether tools may be called, must be, or one of them must be."""


class CalledFunction(Body):
    """The function that an answer calls."""

    name: str
    arguments: str
    """As JSON text."""


class Call(Body):
    """A call in an answer."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class EarlierCall(Call):
    """A call in an earlier turn, whose arguments are whole."""

    @field_validator("function")
    @classmethod
    def _arguments_are_an_object(cls, value: CalledFunction) -> CalledFunction:
        arguments_of(value.arguments)
        return value

    @property
    def for_template(self) -> dict[str, Any]:
        """The call as chat templates take it: with its arguments as an object."""
        function = {"name": self.function.name, "arguments": arguments_of(self.function.arguments)}
        return {"id": self.id, "type": "function", "function": function}


def arguments_of(text: str) -> dict[str, Any]:
    """Return the arguments of a call; none where the text is empty.

    Raises:
        ValueError: They are no JSON object.
    """
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        shown = text if len(text) <= 60 else text[:57] + "..."
        raise ValueError(f"found {shown!r} as the arguments of a call, expected a JSON object; correct them")
    return value


class FunctionDelta(Body):
    """What a chunk adds to a call."""

    name: str | None = None
    arguments: str | None = None


class CallDelta(Body):
    """What a chunk adds to the calls of an answer; the first of a call has its id and name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta
