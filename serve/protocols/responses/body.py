"""`POST /v1/responses`: the body, and its conversion to a chat."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ..body import Body
from ..openai.chat import MAX_ALTERNATIVES, MAX_MESSAGES, ChatBody, chat_body
from ..openai.format import GrammarFormat, ObjectFormat, RegexFormat, TextFormat
from ..openai.tools import MAX_TOOLS, Name
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


class CallItem(Body):
    """A call of a tool in an earlier answer."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class ResultItem(Body):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputPart]

    @property
    def text(self) -> str:
        """The whole result."""
        return self.output if isinstance(self.output, str) else "".join(part.text for part in self.output)


Item = InputTurn | CallItem | ResultItem


class FlatFunction(Body):
    """A function that the model may call."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def chat_tool(self) -> dict[str, Any]:
        """The tool in the shape of chat completions."""
        function = self.model_dump(exclude={"type"}, exclude_none=True)
        return {"type": "function", "function": function}


class FlatNamedTool(Body):
    """The function that must be called."""

    type: Literal["function"]
    name: str


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
    input: Annotated[str, Field(min_length=1)] | Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES)]
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
    tools: Annotated[list[FlatFunction], Field(max_length=MAX_TOOLS)] | None = None
    """Functions that the model may call, where its chat template takes them."""
    tool_choice: Literal["none", "auto", "required"] | FlatNamedTool | None = None
    parallel_tool_calls: bool | None = None

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
            turns: list[dict[str, Any]] = [{"role": "user", "content": self.input}]
        else:
            turns = chat_turns(self.input)
        if self.instructions:
            turns.insert(0, {"role": "system", "content": self.instructions})
        fields = {name: getattr(self, name) for name in ("model", "temperature", "top_p", "stream")}
        fields |= {name: getattr(self, name) for name in ComputeFields.model_fields}
        if self.tools:
            fields["tools"] = [tool.chat_tool for tool in self.tools]
        choice = self.tool_choice
        named = {"type": "function", "function": {"name": choice.name}} if isinstance(choice, FlatNamedTool) else choice
        fields |= {"tool_choice": named, "parallel_tool_calls": self.parallel_tool_calls}
        wants = "message.output_text.logprobs" in (self.include or [])
        logprobs = {"logprobs": True, "top_logprobs": self.top_logprobs or 0} if wants else {}
        wanted = self.text.format if self.text else None
        if isinstance(wanted, FlatSchemaFormat):
            schema = {"name": wanted.name, "schema": wanted.schema_}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif wanted is not None:
            fields["response_format"] = wanted.model_dump(exclude_unset=True)
        return chat_body({**fields, **logprobs, "messages": turns, "max_completion_tokens": self.max_output_tokens})


def chat_turns(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Return the turns of the chat: calls belong to the turn of the assistant before them."""
    turns: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item, ResultItem):
            turns.append({"role": "tool", "tool_call_id": item.call_id, "content": item.text})
        elif isinstance(item, CallItem):
            function = {"name": item.name, "arguments": item.arguments}
            if not turns or turns[-1]["role"] != "assistant":
                turns.append({"role": "assistant"})
            turns[-1].setdefault("tool_calls", []).append(
                {"id": item.call_id, "type": "function", "function": function}
            )
        else:
            turns.append({"role": item.role, "content": item.text})
    return turns
