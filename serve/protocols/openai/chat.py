"""`POST /v1/chat/completions`: the body."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from ....contract.messages import Message
from ..body import Body, validated
from .sampling import SamplingFields
from .tools import MAX_TOOLS, EarlierCall, Tool, ToolChoice, different

MAX_MESSAGES = 4096
MAX_ALTERNATIVES = 20


class TextPart(Body):
    """A part of a message; the models read text only."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """`developer` is read as `system`."""
    tool_calls: list[EarlierCall] | None = None
    """Of the assistant: the tools that it called."""
    tool_call_id: Annotated[str | None, Field(validate_default=True)] = None
    """Of a tool: the call whose result this is."""
    content: Annotated[str | Annotated[list[TextPart], Field(min_length=1)] | None, Field(validate_default=True)] = None
    """Null only beside `tool_calls`."""
    name: str | None = None
    reasoning_content: str | None = None
    """Of the assistant: its thoughts before the answer."""

    @field_validator("tool_calls")
    @classmethod
    def _of_the_assistant(cls, value: list[EarlierCall] | None, info: ValidationInfo) -> list[EarlierCall] | None:
        role = info.data.get("role", "assistant")
        if value and role != "assistant":
            raise ValueError(
                f"found tool_calls in a turn of the role {role}, expected them in the assistant's; move them"
            )
        return value

    @field_validator("tool_call_id")
    @classmethod
    def _of_a_tool(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("role") == "tool":
            raise ValueError("found a turn of a tool without tool_call_id, expected the id of the call; add it")
        return value

    @field_validator("content")
    @classmethod
    def _is_there(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and not info.data.get("tool_calls"):
            raise ValueError("found a turn without content, expected a text; add it")
        return value

    @property
    def message(self) -> Message:
        """The turn as a chat template takes it."""
        message = Message(role="system" if self.role == "developer" else self.role)
        if self.content is not None:
            parts = [self.content] if isinstance(self.content, str) else [part.text for part in self.content]
            message["content"] = "".join(parts)
        if self.tool_calls:
            message["tool_calls"] = [call.for_template for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            message["name"] = self.name
        if self.reasoning_content is not None:
            message["reasoning_content"] = self.reasoning_content
        return message


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
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS), AfterValidator(different)] | None = None
    """Functions that the model may call, where its chat template takes them."""
    tool_choice: ToolChoice | None = None
    """"auto" if left out: the model decides. "required": it calls a tool; a named one: it calls that."""
    parallel_tool_calls: bool | None = None
    """False: at most one call in an answer."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Not of OpenAI: further variables of the chat template, such as `enable_thinking`."""
    documents: list[dict[str, Any]] | None = None
    """Not of OpenAI: documents that the chat template writes, each with `title` and `text`."""

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
