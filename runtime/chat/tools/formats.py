"""The formats of tool calls: recognised from a chat template, and the parser of each."""

from collections.abc import Callable

from ....contract.generation_settings import ToolFormat
from ...format.manifest import Manifest
from ..templates import tool_template_of
from .hermes import HermesParser
from .llama3_json import Llama3JsonParser
from .marked import MarkedParser
from .mistral import MistralParser
from .parts import ToolParser, Tools
from .pythonic import PythonicParser

PARSERS: dict[ToolFormat, type[MarkedParser]] = {
    "hermes": HermesParser,
    "mistral": MistralParser,
    "pythonic": PythonicParser,
    "llama3_json": Llama3JsonParser,
}
SIGNS: tuple[tuple[str, ToolFormat | None], ...] = (
    ("<function=", None),  # Qwen3-Coder: XML between the markers of Hermes
    ("<arg_key>", None),  # GLM, likewise
    ("[TOOL_CALLS]", "mistral"),
    ("<|tool_call_start|>", "pythonic"),
    ("<|python_start|>", "pythonic"),
    ("func_name1(params_name1", "pythonic"),
    ("<tool_call>", "hermes"),
    ("<|python_tag|>", "llama3_json"),
    ('"parameters": dictionary of argument name', "llama3_json"),
    ("ipython", "llama3_json"),
)
"""Texts in a template that show the format of its calls, the surest first; None: a format that is not known here."""


def format_of_template(text: str) -> ToolFormat | None:
    """Recognise how a template writes tool calls; None where no known format is in it."""
    return next((kind for sign, kind in SIGNS if sign in text), None)


def format_of(manifest: Manifest) -> ToolFormat | None:
    """Return how a model writes tool calls; None where its template takes no tools, or the format is not known."""
    template = tool_template_of(manifest)
    return None if template is None else manifest.generation.tools or format_of_template(template.text)


def shown_tokens(format: ToolFormat, special: Callable[[str], int | None]) -> tuple[int, ...]:
    """Return the special tokens that mark calls, so that the text must show them.

    Args:
        format: How calls are written.
        special: Returns the id of a special token by its text; None where there is none.
    """
    ids = (special(marker) for marker in PARSERS[format].shown)
    return tuple(number for number in ids if number is not None)


def parser_of(format: ToolFormat, tools: Tools) -> ToolParser:
    """Return the parser of an answer that may call these tools."""
    return PARSERS[format](format, tools)
