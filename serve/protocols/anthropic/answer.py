"""Answers to `POST /v1/messages`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from ....runtime.chat.tools.parts import CallBegin, TextPart
from ...errors import ServeError
from ..answer import frame, new_id, prompt_tokens
from ..body import Body
from ..order import Order
from ..ours.compute import ComputeUsage
from ..text import Piece, Text
from .errors import error_body

Stop = Literal["end_turn", "stop_sequence", "max_tokens", "tool_use"]
STOP: dict[str, Stop] = {
    "eos": "end_turn",
    "stop": "stop_sequence",
    "length": "max_tokens",
    "tool_calls": "tool_use",
}
"""Our reason for an end -> Anthropic's."""


class TextBlock(Body):
    """The text."""

    type: Literal["text"]
    text: str
    compute: list[dict[str, Any]] = Field(default_factory=list)
    """Not of Anthropic: the compute of each token, with `compute_details`."""


class CallBlock(Body):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


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
    content: list[TextBlock | CallBlock]
    stop_reason: Stop | None
    stop_sequence: str | None
    usage: MessageUsage


class MessagesAnswer:
    """Writes the answer to a message."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.id = new_id("msg_")
        self._blocks = 0  # that have begun
        self._open: Literal["text", "tool_use"] | None = None
        self._records: list[Mapping[str, Any]] = []  # of tokens since the last delta

    def begin(self) -> Iterable[bytes]:
        """Return the start of the message, and of its only block where no tools may be called."""
        usage = MessageUsage(input_tokens=prompt_tokens(self.order), output_tokens=0)
        yield self._frame("message_start", message=self._message([], usage, None))
        if self.order.new_parser is None:
            yield from self._begin_block("text", TextBlock(type="text", text=""))

    def piece(self, piece: Piece, text: Text) -> Iterable[bytes]:
        """Return the new text and calls."""
        self._records += piece.records
        if self.order.new_parser is None:
            if piece.text or piece.records:
                yield self._delta({"type": "text_delta", "text": piece.text})
            return
        for part in piece.parts:
            if isinstance(part, TextPart):
                if self._open != "text":
                    yield from self._begin_block("text", TextBlock(type="text", text=""))
                yield self._delta({"type": "text_delta", "text": part.text})
            elif isinstance(part, CallBegin):
                block = CallBlock(type="tool_use", id=part.id, name=part.name, input={})
                yield from self._begin_block("tool_use", block)
            else:
                yield self._delta({"type": "input_json_delta", "partial_json": part.text})

    def finish(self, texts: Sequence[Text]) -> Iterable[bytes]:
        """Return the end of the block and of the message, with its usage."""
        text = texts[0]
        assert text.end is not None
        yield from self._end_block()
        delta = {"stop_reason": STOP[text.reason], "stop_sequence": text.stop_string}
        fields = {"compute": self._records} if self._records else {}  # of tokens that no delta shows
        yield self._frame("message_delta", delta=delta, usage=self._usage(text), **fields)
        yield self._frame("message_stop")

    def _begin_block(self, kind: Literal["text", "tool_use"], block: Body) -> Iterable[bytes]:
        yield from self._end_block()
        self._open, self._blocks = kind, self._blocks + 1
        yield self._frame("content_block_start", index=self._blocks - 1, content_block=block)

    def _end_block(self) -> Iterable[bytes]:
        if self._open is not None:
            self._open = None
            yield self._frame("content_block_stop", index=self._blocks - 1)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        fields = {"compute": self._records} if self._records else {}
        self._records = []
        return self._frame("content_block_delta", index=self._blocks - 1, delta=delta, **fields)

    def failed(self, error: ServeError) -> Iterable[bytes]:
        """Return the error."""
        yield frame(error_body(error), "error")

    def whole(self, texts: Sequence[Text]) -> MessageAnswer:
        """Return the answer that does not stream."""
        text = texts[0]
        fields: dict[str, Any] = {"compute": text.records} if self.order.details else {}
        blocks: list[TextBlock | CallBlock] = []
        if text.text or not text.calls:
            blocks.append(TextBlock(type="text", text=text.text, **fields))
        for call in text.calls:
            block = CallBlock(type="tool_use", id=call.id, name=call.name, input=call.complete_arguments)
            blocks.append(block)
        return self._message(blocks, self._usage(text), text)

    def _message(self, content: list[TextBlock | CallBlock], usage: MessageUsage, text: Text | None) -> MessageAnswer:
        return MessageAnswer(
            id=self.id,
            type="message",
            role="assistant",
            model=self.order.name,
            content=content,
            stop_reason=None if text is None or text.end is None else STOP[text.reason],
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
