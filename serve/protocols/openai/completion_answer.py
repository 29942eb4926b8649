"""Answers to `POST /v1/completions`."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

from ...errors import ServeError
from ..answer import frame, new_id, now
from ..body import Body
from ..order import Order
from ..text import Piece, ScoredToken, Text, token_name
from .chat_answer import finite
from .errors import error_body
from .usage import Usage, usage_of


class CompletionLogprobs(Body):
    """Log-probabilities of tokens, as lists of equal length."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """None for the first token of a prompt."""
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Where each token begins, in characters of the text."""


class CompletionChoice(Body):
    """One text, or what a chunk adds to it."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: CompletionLogprobs | None
    compute: list[dict[str, Any]] = Field(default_factory=list)
    """Not of OpenAI: the compute of each new token, with `compute_details`."""


class Completion(Body):
    """The whole answer, or one event of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


def ending(reason: str) -> Literal["stop", "length"]:
    """Return OpenAI's reason for an end."""
    return "length" if reason == "length" else "stop"


class CompletionAnswer:
    """Writes the answer to a completion."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.id = new_id("cmpl-")
        self.created = now()
        self._prompts = [order.model.tokenizer.decode(job.prompt) if order.echo else "" for job in order.jobs]
        self._lengths = [0] * len(order.jobs)  # characters of the tokens that have been written

    def begin(self) -> Iterable[bytes]:
        """Return the prompts, where they are wanted and no log-probabilities belong to them."""
        if self.order.echo and self.order.logprobs is None:
            for index, prompt in enumerate(self._prompts):
                yield self._chunk(index, prompt, None, None)

    def piece(self, piece: Piece, text: Text) -> Iterable[bytes]:
        """Return the chunk of a piece, and that of the end."""
        index = piece.index
        if piece.prompt is not None:
            yield self._chunk(index, self._prompts[index], None, self._logprobs(index, piece.prompt))
        if piece.text or piece.records or piece.scored:
            yield self._chunk(index, piece.text, None, self._logprobs(index, piece.scored), piece.records)
        if piece.finish_reason is not None:
            yield self._chunk(index, "", ending(piece.finish_reason), None)

    def finish(self, texts: Sequence[Text]) -> Iterable[bytes]:
        """Return the chunk with the usage, if asked for, and the mark of the end."""
        if self.order.include_usage:
            yield frame(Completion(**self._head, choices=[], usage=usage_of(texts)))
        yield b"data: [DONE]\n\n"

    def failed(self, error: ServeError) -> Iterable[bytes]:
        """Return the error."""
        yield frame(error_body(error))

    def whole(self, texts: Sequence[Text]) -> Completion:
        """Return the answer that does not stream."""
        choices = []
        for text in texts:
            assert text.end is not None
            fields: dict[str, Any] = {"compute": text.records} if self.order.details else {}
            choices.append(
                CompletionChoice(
                    index=text.index,
                    text=self._prompts[text.index] + text.text,
                    finish_reason=ending(text.end.reason),
                    logprobs=self._logprobs(text.index, [*(text.prompt or []), *text.scored]),
                    **fields,
                )
            )
        return Completion(**self._head, choices=choices, usage=usage_of(texts))

    @property
    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.order.name}

    def _chunk(
        self, index: int, text: str, reason: Any, logprobs: CompletionLogprobs | None, records: Sequence[Any] = ()
    ) -> bytes:
        fields: dict[str, Any] = {"compute": list(records)} if records else {}
        choice = CompletionChoice(index=index, text=text, finish_reason=reason, logprobs=logprobs, **fields)
        return frame(Completion(**self._head, choices=[choice]))

    def _logprobs(self, index: int, scored: Sequence[ScoredToken]) -> CompletionLogprobs | None:
        if self.order.logprobs is None:
            return None
        offsets = []
        for one in scored:
            offsets.append(self._lengths[index])
            self._lengths[index] += len(one.data.decode(errors="replace"))
        return CompletionLogprobs(
            tokens=[one.text for one in scored],
            token_logprobs=[None if one.logprob is None else finite(one.logprob) for one in scored],
            top_logprobs=[None if one.logprob is None else named(one.top) for one in scored],
            text_offset=offsets,
        )


def named(top: Sequence[tuple[bytes, float]]) -> dict[str, float]:
    """Return alternatives by name; of two with one name the more probable, which comes first."""
    names: dict[str, float] = {}
    for data, logprob in top:
        names.setdefault(token_name(data), finite(logprob))
    return names
