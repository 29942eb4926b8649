"""Answers to `POST /v1/messages`."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

from ...errors import ServeError
from ..answer import frame, new_id, prompt_tokens
from ..body import Body
from ..order import Order
from ..ours.compute import ComputeUsage
from ..text import Piece, Text
from .errors import error_body

STOP: dict[str, Literal["end_turn", "stop_sequence", "max_tokens"]] = {
    "eos": "end_turn",
    "stop": "stop_sequence",
    "length": "max_tokens",
}
"""Our reason for an end -> Anthropic's."""


class TextBlock(Body):
    """The text."""

    type: Literal["text"]
    text: str
    compute: list[dict[str, Any]] = Field(default_factory=list)
    """Not of Anthropic: the compute of each token, with `compute_details`."""


class MessageUsage(Body):
    """Tokens of the prompt and the text."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    compute: ComputeUsage | None = None
    """Not of Anthropic: the compute of the new tokens."""


class MessageAnswer(Body):
    """The whole answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock]
    stop_reason: Literal["end_turn", "stop_sequence", "max_tokens"] | None
    stop_sequence: str | None
    usage: MessageUsage


class MessagesAnswer:
    """Writes the answer to a message."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.id = new_id("msg_")

    def begin(self) -> Iterable[bytes]:
        """Return the start of the message and of its only block."""
        usage = MessageUsage(input_tokens=prompt_tokens(self.order), output_tokens=0)
        yield self._frame("message_start", message=self._message([], usage, None))
        yield self._frame("content_block_start", index=0, content_block=TextBlock(type="text", text=""))

    def piece(self, piece: Piece, text: Text) -> Iterable[bytes]:
        """Return the new text."""
        if piece.text or piece.records:
            fields = {"compute": piece.records} if piece.records else {}
            delta = {"type": "text_delta", "text": piece.text}
            yield self._frame("content_block_delta", index=0, delta=delta, **fields)

    def finish(self, texts: Sequence[Text]) -> Iterable[bytes]:
        """Return the end of the block and of the message, with its usage."""
        text = texts[0]
        assert text.end is not None
        yield self._frame("content_block_stop", index=0)
        delta = {"stop_reason": STOP[text.end.reason], "stop_sequence": text.stop_string}
        yield self._frame("message_delta", delta=delta, usage=self._usage(text))
        yield self._frame("message_stop")

    def failed(self, error: ServeError) -> Iterable[bytes]:
        """Return the error."""
        yield frame(error_body(error), "error")

    def whole(self, texts: Sequence[Text]) -> MessageAnswer:
        """Return the answer that does not stream."""
        text = texts[0]
        fields: dict[str, Any] = {"compute": text.records} if self.order.details else {}
        return self._message([TextBlock(type="text", text=text.text, **fields)], self._usage(text), text)

    def _message(self, content: list[TextBlock], usage: MessageUsage, text: Text | None) -> MessageAnswer:
        return MessageAnswer(
            id=self.id,
            type="message",
            role="assistant",
            model=self.order.name,
            content=content,
            stop_reason=None if text is None or text.end is None else STOP[text.end.reason],
            stop_sequence=None if text is None else text.stop_string,
            usage=usage,
        )

    def _usage(self, text: Text) -> MessageUsage:
        assert text.end is not None
        return MessageUsage(
            input_tokens=prompt_tokens(self.order),
            output_tokens=len(text.ids),
            cache_read_input_tokens=text.end.cached_tokens,
            compute=text.compute.usage(),
        )

    @staticmethod
    def _frame(kind: str, **fields: Any) -> bytes:
        plain = {
            name: value.model_dump(exclude_unset=True) if isinstance(value, Body) else value
            for name, value in fields.items()
        }
        return frame({"type": kind, **plain}, kind)
