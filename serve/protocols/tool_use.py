"""The tools of a request: what the template writes, what the text must match, and how calls are read back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...contract.generation_settings import ToolFormat
from ...runtime.chat.templates import template_of, tool_template_of
from ...runtime.chat.tools.formats import format_of, parser_of, shown_tokens
from ...runtime.chat.tools.grammar import tool_grammar
from ...runtime.chat.tools.parts import ToolParser, Tools, tools_of
from ...runtime.generation.sampling.mask import Grammar
from ..errors import BadRequestError
from ..scheduler.job import ModelInfo
from .grammars import Grammars
from .openai.chat import ChatBody
from .openai.tools import NamedTool


@dataclass(frozen=True)
class ToolUse:
    """The tools that an answer may call."""

    format: ToolFormat
    definitions: Sequence[dict[str, Any]]
    """In OpenAI's shape, for the template."""
    tools: Tools
    shown: tuple[int, ...]
    """Special tokens that mark calls, so that the text must show them."""
    most: int | None
    """The most calls that the answer holds; None sets no limit."""
    grammar: Grammar | None = None
    """What the text must match where a call is required."""

    def parser(self) -> ToolParser:
        """Return the parser of one text."""
        return parser_of(self.format, self.tools)


def tool_use_of(body: ChatBody, model: ModelInfo, grammars: Grammars | None) -> ToolUse | None:
    """Return the tools of a chat; None where it has none, or none may be called.

    Args:
        body: The chat.
        model: The model.
        grammars: Compiles what the text must match; None where only the prompt is needed.

    Raises:
        BadRequestError: The model cannot call tools, or the choice names none of them.
        UnavailableError: Too many grammars wait to be compiled.
    """
    named = body.tool_choice.function.name if isinstance(body.tool_choice, NamedTool) else None
    if not body.tools:
        if named is not None or body.tool_choice == "required":
            raise BadRequestError("found tool_choice without tools, expected both; add tools", param="tool_choice")
        return None
    if named is not None and all(tool.function.name != named for tool in body.tools):
        raise BadRequestError(f"found tool_choice {named!r}, which is none of the tools; add it", param="tool_choice")
    if body.tool_choice == "none":
        return None
    writes = format_of(model.manifest)
    if writes is None:
        takes = tool_template_of(model.manifest) is not None
        raise BadRequestError(
            f"found tools, the model {model.name} "
            + ("writes calls in a format that is not known here" if takes else "has no chat template that takes them")
            + "; leave the field out",
            param="tools",
        )
    if body.response_format is not None and body.response_format.type != "text":
        raise BadRequestError(
            "found tools and response_format, expected one of them; a text that must match a format cannot call tools",
            param="response_format",
        )
    definitions = [tool.model_dump(exclude_unset=True) for tool in body.tools]
    tools = tools_of(definitions)
    parallel = body.parallel_tool_calls is not False and named is None
    grammar = None
    if grammars is not None and (named is not None or body.tool_choice == "required"):
        template = template_of(model.manifest, tools=True).text
        wanted = tools if named is None else {named: tools[named]}
        source = tool_grammar(writes, template, wanted, model.tokenizer.special_id, parallel=parallel)
        grammar = grammars.lark(source, model, "tools")
    shown = shown_tokens(writes, model.tokenizer.special_id)
    return ToolUse(writes, definitions, tools, shown, None if parallel else 1, grammar)
