"""Answers to `POST /v1/chat/completions`."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

from ...errors import ServeError
from ..answer import frame, new_id, now
from ..body import Body
from ..order import Order
from ..text import Piece, ScoredToken, Text, token_name
from .errors import error_body
from .usage import Usage, usage_of

FINISH: dict[str, Literal["stop", "length"]] = {"eos": "stop", "stop": "stop", "length": "length"}
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
    content: str
    refusal: None = None


class ChatChoice(Body):
    """One text."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
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


class ChunkChoice(Body):
    """What a chunk adds to one text."""

    index: int
    delta: Delta
    finish_reason: Literal["stop", "length"] | None
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
            assert text.end is not None
            fields: dict[str, Any] = {"compute": text.records} if self.order.details else {}
            choices.append(
                ChatChoice(
                    index=text.index,
                    message=AnswerMessage(role="assistant", content=text.text, refusal=None),
                    finish_reason=FINISH[text.end.reason],
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
