"""`POST /v1/chat/completions`: the body."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ....contract.messages import Message
from ..body import Body, validated
from .sampling import SamplingFields

MAX_MESSAGES = 4096
MAX_ALTERNATIVES = 20


class TextPart(Body):
    """A part of a message; the models read text only."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    """`developer` is read as `system`."""
    content: str | Annotated[list[TextPart], Field(min_length=1)]

    @property
    def message(self) -> Message:
        """The turn as a chat template takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class ChatBody(SamplingFields):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """The most new tokens; more than the context leaves is as much as it leaves, and so is null."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """The new name of `max_tokens`; counts where both are given."""
    logprobs: bool | None = None
    """Whether to report the log-probability of each token."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_ALTERNATIVES)] | None = None
    """Alternatives to report for each token; needs `logprobs`."""
    modalities: list[str] | None = None
    """Only `["text"]`."""

    @field_validator("modalities")
    @classmethod
    def _text_only(cls, value: list[str] | None) -> list[str] | None:
        if value and value != ["text"]:
            raise ValueError(f'found modalities {value[:4]}, expected ["text"]; leave the field out')
        return value

    @property
    def wanted(self) -> int | None:
        """The most new tokens that the client wants."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Alternatives for each token; None where no log-probabilities are reported."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def conversation(self) -> list[Message]:
        """The turns as a chat template takes them."""
        return [one.message for one in self.messages]


def chat_body(fields: dict[str, Any]) -> ChatBody:
    """Return the body to which another protocol's was converted.

    Raises:
        BadRequestError: A field is not what it should be.
    """
    return validated(ChatBody, {name: value for name, value in fields.items() if value is not None})
