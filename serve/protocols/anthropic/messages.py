"""`POST /v1/messages` and `/v1/messages/count_tokens`: the bodies, and their conversion to a chat."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from ..body import Body
from ..openai.chat import MAX_MESSAGES, ChatBody, TextPart, chat_body
from ..openai.tools import MAX_TOOLS, Name
from ..ours.compute import ComputeFields

TextBlocks = Annotated[list[TextPart], Field(min_length=1)]


class ToolUseBlock(Body):
    """A call of a tool in a turn of the assistant."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(Body):
    """The result of a call in a turn of the user."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextPart] | None = None
    is_error: bool | None = None


Block = Annotated[TextPart | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class Turn(Body):
    """One turn of the conversation."""

    role: Literal["user", "assistant"]
    content: str | Annotated[list[Block], Field(min_length=1)]

    def chat_turns(self) -> Iterator[dict[str, Any]]:
        """Return the turns of the chat: a result of a tool is one of its own, before the text beside it."""
        if isinstance(self.content, str):
            yield {"role": self.role, "content": self.content}
            return
        calls: list[dict[str, Any]] = []
        parts: list[dict[str, str]] = []
        for block in self.content:
            if isinstance(block, ToolUseBlock):
                function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
                calls.append({"id": block.id, "type": "function", "function": function})
            elif isinstance(block, ToolResultBlock):
                content = block.content or ""
                text = content if isinstance(content, str) else "".join(part.text for part in content)
                yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}
            else:
                parts.append({"type": "text", "text": block.text})
        if parts or calls:
            given = {"content": parts} if parts else {}
            yield {"role": self.role, **given, **({"tool_calls": calls} if calls else {})}


class ToolDefinition(Body):
    """A tool that the model may call."""

    name: Name
    description: str | None = None
    input_schema: dict[str, Any]

    @property
    def chat_tool(self) -> dict[str, Any]:
        """The tool in OpenAI's shape."""
        described = {} if self.description is None else {"description": self.description}
        return {"type": "function", "function": {"name": self.name, **described, "parameters": self.input_schema}}


class Choice(Body):
    """Whether tools may be called, must be, or one of them must be."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    """Of the tool that must be called."""
    disable_parallel_tool_use: bool | None = None

    @property
    def chat_choice(self) -> Any:
        """The choice in OpenAI's shape."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name or ""}}
        return "required" if self.type == "any" else self.type


class CountBody(Body):
    """The body of `POST /v1/messages/count_tokens`."""

    model: str | None = None
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: str | TextBlocks | None = None
    tools: Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS)] | None = None
    """Tools that the model may call, where its chat template takes them."""
    tool_choice: Choice | None = None

    def chat_fields(self) -> dict[str, Any]:
        """Return the fields of the chat."""
        turns = [turn for one in self.messages for turn in one.chat_turns()]
        if self.system:
            turns.insert(0, {"role": "system", **self.model_dump(include={"system"})})
            turns[0]["content"] = turns[0].pop("system")
        fields: dict[str, Any] = {"model": self.model, "messages": turns}
        if self.tools:
            fields["tools"] = [tool.chat_tool for tool in self.tools]
        if self.tool_choice is not None:
            fields["tool_choice"] = self.tool_choice.chat_choice
            fields["parallel_tool_calls"] = False if self.tool_choice.disable_parallel_tool_use else None
        return fields

    def chat(self) -> ChatBody:
        """Return the chat."""
        return chat_body(self.chat_fields())


class TokenCount(Body):
    """Tokens of a conversation."""

    input_tokens: int


class MessagesBody(CountBody, ComputeFields):
    """The body of `POST /v1/messages`."""

    max_tokens: Annotated[int, Field(ge=1)]
    """The most new tokens; more than the context leaves is as much as it leaves."""
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None

    def chat(self) -> ChatBody:
        """Return the chat."""
        same = ("max_tokens", "stream", "temperature", "top_p", "top_k")
        fields = {name: getattr(self, name) for name in (*same, *ComputeFields.model_fields)}
        return chat_body({**self.chat_fields(), **fields, "stop": self.stop_sequences})
