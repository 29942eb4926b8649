"""`POST /v1/messages` and `/v1/messages/count_tokens`: the bodies, and their conversion to a chat."""

from typing import Annotated, Any, Literal

from pydantic import Field

from ..body import Body, NoTools
from ..openai.chat import MAX_MESSAGES, ChatBody, TextPart, chat_body
from ..ours.compute import ComputeFields

Blocks = Annotated[list[TextPart], Field(min_length=1)]


class Turn(Body):
    """One turn of the conversation."""

    role: Literal["user", "assistant"]
    content: str | Blocks


class CountBody(Body):
    """The body of `POST /v1/messages/count_tokens`."""

    model: str | None = None
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: str | Blocks | None = None

    def chat_fields(self) -> dict[str, Any]:
        """Return the fields of the chat."""
        turns = [one.model_dump(include={"role", "content"}) for one in self.messages]
        if self.system:
            turns.insert(0, {"role": "system", **self.model_dump(include={"system"})})
            turns[0]["content"] = turns[0].pop("system")
        return {"model": self.model, "messages": turns}

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
    tools: NoTools = None
    """Refused: no model of this server has a template for tools."""

    def chat(self) -> ChatBody:
        """Return the chat."""
        same = ("max_tokens", "stream", "temperature", "top_p", "top_k")
        fields = {name: getattr(self, name) for name in (*same, *ComputeFields.model_fields)}
        return chat_body({**self.chat_fields(), **fields, "stop": self.stop_sequences})
