"""`response_format`: what the text must match."""

from typing import Annotated, Any, Literal

from pydantic import Field

from ..body import Body


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Body):
    """A JSON schema and its name."""

    name: str = "answer"
    schema_: dict[str, Any] = Field(alias="schema", default_factory=dict)


class SchemaFormat(Body):
    """JSON that matches a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class RegexFormat(Body):
    """Text that matches a regular expression, whole. Not of OpenAI."""

    type: Literal["regex"]
    regex: str


class GrammarFormat(Body):
    """Text that matches a grammar in Lark's notation. Not of OpenAI."""

    type: Literal["grammar"]
    grammar: str


ResponseFormat = Annotated[
    TextFormat | ObjectFormat | SchemaFormat | RegexFormat | GrammarFormat, Field(discriminator="type")
]
