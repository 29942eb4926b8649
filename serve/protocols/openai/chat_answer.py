"""Answers to `POST /v1/chat/completions`."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

from ....runtime.chat.tools.parts import ArgumentsPart, CallBegin, TextPart
from ...errors import ServeError
from ..answer import frame, new_id, now
from ..body import Body
from ..order import Order
from ..text import Piece, ScoredToken, Text, token_name
from .errors import error_body
from .tools import Call, CallDelta, FunctionDelta
from .usage import Usage, usage_of

Finish = Literal["stop", "length", "tool_calls"]
FINISH: dict[str, Finish] = {"eos": "stop", "stop": "stop", "length": "length", "tool_calls": "tool_calls"}
"""Our reason for an end -> OpenAI's."""


class Alternative(Body):
    """A token that could have been chosen."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChosenToken(Body):
    """A token with its alternatives."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[Alternative]


class ChatLogprobs(Body):
    """Log-probabilities of tokens."""

    content: list[ChosenToken]
    refusal: None = None


class AnswerMessage(Body):
    """The answer as a turn of the conversation."""

    role: Literal["assistant"]
    content: str | None
    """Null where the answer only calls tools."""
    refusal: None = None
    tool_calls: list[Call] = Field(default_factory=list)
    """The tools that the answer calls; left out where it calls none."""


class ChatChoice(Body):
    """One text."""

    index: int
    message: AnswerMessage
    finish_reason: Finish
    logprobs: ChatLogprobs | None
    compute: list[dict[str, Any]] = Field(default_factory=list)
    """Not of OpenAI: the compute of each token, with `compute_details`."""


class ChatCompletion(Body):
    """The whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(Body):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[CallDelta] = Field(default_factory=list)


class ChunkChoice(Body):
    """What a chunk adds to one text."""

    index: int
    delta: Delta
    finish_reason: Finish | None
    logprobs: ChatLogprobs | None
    compute: list[dict[str, Any]] = Field(default_factory=list)


class ChatChunk(Body):
    """One event of a streamed answer; the last, without choices, holds the usage, if asked for."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


def chosen(one: ScoredToken) -> ChosenToken:
    """Write a token with its alternatives."""
    return ChosenToken(
        token=one.text,
        logprob=finite(one.logprob),
        bytes=list(one.data),
        top_logprobs=[
            Alternative(token=token_name(data), logprob=finite(logprob), bytes=list(data)) for data, logprob in one.top
        ],
    )


def finite(logprob: float | None) -> float:
    """Return a log-probability as OpenAI writes it: -9999 for a token that has none."""
    return -9999.0 if logprob is None else max(logprob, -9999.0)


def answer_message(text: Text) -> AnswerMessage:
    """Write the answer as a turn of the conversation."""
    calls = [Call(**call.message) for call in text.calls]
    fields: dict[str, Any] = {"tool_calls": calls} if calls else {}
    return AnswerMessage(role="assistant", content=text.text or (None if calls else ""), refusal=None, **fields)


def call_delta(part: CallBegin | ArgumentsPart) -> CallDelta:
    """Write what a part adds to a call."""
    if isinstance(part, ArgumentsPart):
        return CallDelta(index=part.index, function=FunctionDelta(arguments=part.text))
    function = FunctionDelta(name=part.name, arguments="")
    return CallDelta(index=part.index, id=part.id, type="function", function=function)


class ChatAnswer:
    """Writes the answer to a chat."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.id = new_id("chatcmpl-")
        self.created = now()

    def begin(self) -> Iterable[bytes]:
        """Return a chunk with the role, for each text."""
        for index in range(len(self.order.jobs)):
            yield self._chunk(index, Delta(role="assistant", content=""), None)

    def piece(self, piece: Piece, text: Text) -> Iterable[bytes]:
        """Return the chunk of a piece, and that of the end."""
        if piece.text or piece.records or piece.scored:
            logprobs = self._logprobs(piece.scored)
            yield self._chunk(piece.index, Delta(content=piece.text), None, logprobs, piece.records)
        calls = [call_delta(part) for part in piece.parts if not isinstance(part, TextPart)]
        if calls:
            yield self._chunk(piece.index, Delta(tool_calls=calls), None)
        if piece.finish_reason is not None:
            yield self._chunk(piece.index, Delta(), FINISH[piece.finish_reason])

    def finish(self, texts: Sequence[Text]) -> Iterable[bytes]:
        """Return the chunk with the usage, if asked for, and the mark of the end."""
        if self.order.include_usage:
            yield frame(ChatChunk(**self._head, choices=[], usage=usage_of(texts)))
        yield b"data: [DONE]\n\n"

    def failed(self, error: ServeError) -> Iterable[bytes]:
        """Return the error."""
        yield frame(error_body(error))

    def whole(self, texts: Sequence[Text]) -> ChatCompletion:
        """Return the answer that does not stream."""
        choices = []
        for text in texts:
            fields: dict[str, Any] = {"compute": text.records} if self.order.details else {}
            choices.append(
                ChatChoice(
                    index=text.index,
                    message=answer_message(text),
                    finish_reason=FINISH[text.reason],
                    logprobs=self._logprobs(text.scored),
                    **fields,
                )
            )
        return ChatCompletion(
            id=self.id, object="chat.completion", created=self.created, model=self.order.name, choices=choices,
            usage=usage_of(texts),
        )  # fmt: skip

    @property
    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.order.name}

    def _chunk(
        self, index: int, delta: Delta, reason: Any, logprobs: ChatLogprobs | None = None, records: Sequence[Any] = ()
    ) -> bytes:
        fields: dict[str, Any] = {"compute": list(records)} if records else {}
        choice = ChunkChoice(index=index, delta=delta, finish_reason=reason, logprobs=logprobs, **fields)
        return frame(ChatChunk(**self._head, choices=[choice]))

    def _logprobs(self, scored: Sequence[ScoredToken]) -> ChatLogprobs | None:
        if self.order.logprobs is None:
            return None
        return ChatLogprobs(content=[chosen(one) for one in scored], refusal=None)
