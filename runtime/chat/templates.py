"""The chat templates of a model: which one writes a conversation, and whether it takes tools."""

import re
from typing import NamedTuple

from ...contract.errors import UserError
from ...contract.generation_settings import DEFAULT_TEMPLATE, Dialect
from ..format.manifest import Manifest

TOOL_TEMPLATE = "tool_use"
"""The named template that transformers takes where tools are given."""
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_CODE = re.compile(r"\{%.*?%\}|\{\{.*?\}\}", re.DOTALL)
_STRING = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_TOOLS = re.compile(r"(?<![\w.])tools\b(?!\s*=[^=])")


class Template(NamedTuple):
    """A chat template and the environment that it was written for."""

    text: str
    dialect: Dialect

    @property
    def takes_tools(self) -> bool:
        """Whether it reads the variable `tools`."""
        code = _CODE.findall(_COMMENT.sub("", self.text))
        return self.dialect == "huggingface" and any(_TOOLS.search(_STRING.sub("", part)) for part in code)


def template_of(manifest: Manifest, name: str | None = None, *, tools: bool = False) -> Template:
    """Return a chat template of a model.

    Args:
        manifest: The model.
        name: Its name; None takes that for tools where there are some and the model has one, else the main one.
        tools: Whether there are tools.

    Raises:
        UserError: The model has none, or none of that name, or it takes no tools.
    """
    generation = manifest.generation
    named = generation.templates | (
        {} if manifest.chat_template is None else {DEFAULT_TEMPLATE: manifest.chat_template}
    )
    if not named:
        raise UserError("this model has no chat template: it was not trained on conversations; use --raw")
    if name is None:
        name = TOOL_TEMPLATE if tools and TOOL_TEMPLATE in named else DEFAULT_TEMPLATE
    if name not in named:
        raise UserError(
            f"found the chat template {name!r}, this model has {', '.join(sorted(named))}; name one of them"
        )
    template = Template(named[name], generation.dialect)
    if tools and not template.takes_tools:
        raise UserError("found tools, this model's chat template takes none; leave them out")
    return template


def tool_template_of(manifest: Manifest) -> Template | None:
    """Return the chat template that writes tools; None where the model has none that takes them."""
    if manifest.chat_template is None and TOOL_TEMPLATE not in manifest.generation.templates:
        return None
    template = template_of(manifest, TOOL_TEMPLATE if TOOL_TEMPLATE in manifest.generation.templates else None)
    return template if template.takes_tools else None
