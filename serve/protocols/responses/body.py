"""`POST /v1/responses`: the body, and its conversion to a chat."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ..body import Body, NoTools
from ..openai.chat import MAX_ALTERNATIVES, MAX_MESSAGES, ChatBody, chat_body
from ..openai.format import GrammarFormat, ObjectFormat, RegexFormat, TextFormat
from ..ours.compute import ComputeFields


class InputPart(Body):
    """A part of a turn; the models read text only."""

    type: Literal["input_text", "output_text"]
    text: str


class InputTurn(Body):
    """One turn of the conversation."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[InputPart], Field(min_length=1)]

    @property
    def text(self) -> str:
        """The whole text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class FlatSchemaFormat(Body):
    """JSON that matches a schema."""

    type: Literal["json_schema"]
    name: str = "answer"
    schema_: dict[str, Any] = Field(alias="schema")


class TextOptions(Body):
    """Options of the text."""

    format: (
        Annotated[
            TextFormat | ObjectFormat | FlatSchemaFormat | RegexFormat | GrammarFormat, Field(discriminator="type")
        ]
        | None
    ) = None


class ResponsesBody(ComputeFields):
    """The body of `POST /v1/responses`."""

    model: str | None = None
    input: (
        Annotated[str, Field(min_length=1)] | Annotated[list[InputTurn], Field(min_length=1, max_length=MAX_MESSAGES)]
    )
    instructions: str | None = None
    """A first turn of the system."""
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    text: TextOptions | None = None
    include: list[str] | None = None
    """`["message.output_text.logprobs"]` reports log-probabilities."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_ALTERNATIVES)] | None = None
    metadata: dict[str, str] | None = None
    """Given back as it is."""
    previous_response_id: str | None = None
    """Refused: the server keeps no conversation."""
    background: bool | None = None
    """Refused, if true."""
    tools: NoTools = None
    """Refused: no model of this server has a template for tools."""

    @field_validator("previous_response_id")
    @classmethod
    def _no_memory(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("found previous_response_id, this server keeps no conversation; send all turns in input")
        return value

    @field_validator("background")
    @classmethod
    def _not_in_the_background(cls, value: bool | None) -> bool | None:
        if value:
            raise ValueError("found background true, this server answers at once or as a stream; leave it out")
        return value

    def chat(self) -> ChatBody:
        """Return the chat."""
        if isinstance(self.input, str):
            turns = [{"role": "user", "content": self.input}]
        else:
            turns = [{"role": one.role, "content": one.text} for one in self.input]
        if self.instructions:
            turns.insert(0, {"role": "system", "content": self.instructions})
        fields = {name: getattr(self, name) for name in ("model", "temperature", "top_p", "stream")}
        fields |= {name: getattr(self, name) for name in ComputeFields.model_fields}
        wants = "message.output_text.logprobs" in (self.include or [])
        logprobs = {"logprobs": True, "top_logprobs": self.top_logprobs or 0} if wants else {}
        wanted = self.text.format if self.text else None
        if isinstance(wanted, FlatSchemaFormat):
            schema = {"name": wanted.name, "schema": wanted.schema_}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif wanted is not None:
            fields["response_format"] = wanted.model_dump(exclude_unset=True)
        return chat_body({**fields, **logprobs, "messages": turns, "max_completion_tokens": self.max_output_tokens})
