"""Options of `adaptive generate` for tools that the model may call."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ....contract.errors import UserError, WrongUsageError
from ....contract.text.file import read_text

if TYPE_CHECKING:
    from ....contract.generation_settings import ToolFormat
    from ...generation.engine import Engine
    from ...generation.request import Token

Command = TypeVar("Command", bound=Callable[..., Any])


def tool_options(command: Command) -> Command:
    """Add the options that name tools."""
    for option in reversed((
        click.option("--tools", metavar="FILE",
                     help="Let the model call the functions in FILE, a JSON list in the shape of OpenAI's `tools`; the "
                          "calls are printed, one a line, and not run."),
        click.option("--tool-format", type=click.Choice(["hermes", "mistral", "pythonic", "llama3_json"]),
                     help="How the model writes calls; by default recognised from its chat template."),
    )):  # fmt: skip
        command = option(command)
    return command


def read_tools(file: str | None, tool_format: str | None) -> list[dict[str, Any]]:
    """Return the tools in a file; none where there is no file.

    Raises:
        UserError: The file cannot be read, or is no list of functions.
    """
    if file is None:
        if tool_format is not None:
            raise WrongUsageError("found --tool-format without --tools, expected both; add --tools FILE")
        return []
    try:
        content = json.loads(read_text(Path(file)))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} is no JSON: {error}; correct it") from error
    tools = []
    for tool in content if isinstance(content, list) else [None]:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        parameters = function.get("parameters") if isinstance(function, dict) else None
        if not isinstance(name, str) or not name or not isinstance(parameters or {}, dict):
            raise UserError(
                f'{file} is no list of functions: expected [{{"type": "function", "function": {{"name": "now", '
                '"parameters": {"type": "object"}}}]; correct it'
            )
        tools.append({"type": "function", "function": function})
    if not tools:
        raise UserError(f"found no function in {file}, expected at least one; add it, or leave --tools out")
    return tools


class ToolCalls:
    """Reads the calls of an answer as it is generated.

    Args:
        engine: The model.
        tools: The tools.
        tool_format: How the model writes calls; None recognises it from its template.

    Raises:
        UserError: The model's template takes no tools, or its format is not known.
    """

    def __init__(self, engine: Engine, tools: list[dict[str, Any]], tool_format: ToolFormat | None) -> None:
        from ...chat.tools.formats import format_of, parser_of, shown_tokens
        from ...chat.tools.parts import Answer, tools_of

        own = format_of(engine.manifest)
        if own is None and tool_format is None:
            raise UserError(
                "found --tools, this model has no chat template that takes tools, or writes calls in a way that is not "
                "known; leave --tools out, or name the way with --tool-format"
            )
        chosen: ToolFormat = tool_format or own  # type: ignore[assignment]  # one of them is there
        self._parser, self.answer = parser_of(chosen, tools_of(tools)), Answer()
        self.shown = shown_tokens(chosen, engine.tokenizer.special_id)
        """Special tokens that the text must show."""

    def texts(self, tokens: Iterable[Token]) -> Iterator[str]:
        """Yield the text without calls, then each call as a line of its own."""
        from ...chat.tools.parts import TextPart

        for token in tokens:
            parts = self._parser.push(token.text)
            self.answer.add(parts)
            yield from (part.text for part in parts if isinstance(part, TextPart))
        parts = self._parser.flush()
        self.answer.add(parts)
        yield from (part.text for part in parts if isinstance(part, TextPart))
        lines = [f"{call.name}({call.arguments})" for call in self.answer.calls]
        if lines:
            yield ("\n" if self.answer.text and not self.answer.text.endswith("\n") else "") + "\n".join(lines)

    @property
    def fields(self) -> dict[str, Any]:
        """The answer for `--json`."""
        return {"text": self.answer.text, "tool_calls": [call.message for call in self.answer.calls]}
