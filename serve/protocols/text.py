"""A text as it grows from the events of its job, and what each event adds to the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...runtime.chat.tools.parts import Answer, Part, TextPart, ToolCall, ToolParser
from ...runtime.generation.request import Token
from ...runtime.generation.summary import token_json
from ...runtime.generation.text.text_stream import TextStream
from ...runtime.generation.text.tokenizer import Tokenizer
from ..errors import ServeError, UnavailableError
from ..scheduler.job import EmbeddingEvent, EndEvent, Event, PromptEvent, TokenEvent
from .order import Order
from .ours.compute import ComputeSum


def token_name(data: bytes) -> str:
    r"""Write the bytes of a token as OpenAI does: its text, or `bytes:\xe2\x80` for a part of a character."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


@dataclass(frozen=True)
class ScoredToken:
    """A token with its log-probability and those of its alternatives."""

    data: bytes
    """What it adds to the text; a part of a character where that takes several tokens."""
    logprob: float | None
    top: Sequence[tuple[bytes, float]]

    @property
    def text(self) -> str:
        """Its name, by `token_name`."""
        return token_name(self.data)

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, token: int, logprob: float | None, top: Mapping[int, float] | None
    ) -> "ScoredToken":
        """Look up the bytes of a token and of its alternatives."""
        others = [(tokenizer.bytes_of(other), value) for other, value in (top or {}).items()]
        return cls(tokenizer.bytes_of(token), logprob, others)


@dataclass(frozen=True)
class Piece:
    """What one event added to a text."""

    index: int
    """Which text of the answer."""
    text: str = ""
    parts: Sequence[Part] = ()
    """The text and the calls of tools in their order, where tools may be called."""
    scored: Sequence[ScoredToken] = ()
    """Log-probabilities of the tokens whose text is shown now."""
    records: Sequence[Mapping[str, Any]] = ()
    """The compute of each new token."""
    prompt: Sequence[ScoredToken] | None = None
    """Log-probabilities of the prompt, once it is computed."""
    finish_reason: str | None = None
    """Set on the last piece: "eos", "stop", "length" or "tool_calls"."""

    @property
    def empty(self) -> bool:
        """Whether a client would see nothing new."""
        return not (
            self.text or self.parts or self.scored or self.records or self.finish_reason or self.prompt is not None
        )


@dataclass
class Text:
    """One text of an answer, from the first event to the last."""

    order: Order
    index: int
    compute: ComputeSum = field(default_factory=ComputeSum)
    pieces: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    scored: list[ScoredToken] = field(default_factory=list)
    records: list[Mapping[str, Any]] = field(default_factory=list)
    prompt: list[ScoredToken] | None = None
    end: EndEvent | None = None
    reason: str = ""
    """Why it ended, once it has: "eos", "stop", "length" or "tool_calls"."""
    _parser: ToolParser | None = None
    _answer: Answer = field(default_factory=Answer)
    _waiting: list[tuple[int, ScoredToken]] = field(default_factory=list)
    """Tokens whose text is not shown yet, each with the place at which its text begins."""
    _shown: int = 0
    """Characters that were shown."""
    _certain: int = 0
    """Characters that the tokens stand for, those of a stop string included."""
    _stream: TextStream | None = None

    def __post_init__(self) -> None:
        if self.order.new_parser is not None:
            self._parser = self.order.new_parser()

    @property
    def text(self) -> str:
        """The text so far, without calls of tools."""
        return "".join(self.pieces) if self._parser is None else self._answer.text

    @property
    def calls(self) -> list[ToolCall]:
        """The calls of tools so far."""
        return self._answer.calls

    def add(self, event: Event) -> Piece:
        """Take an event, and return what it added.

        Raises:
            ServeError: The job failed, or the server ended it.
        """
        if isinstance(event, TokenEvent):
            return self._token(event.token)
        if isinstance(event, PromptEvent):
            return self._prompt(event)
        assert not isinstance(event, EmbeddingEvent)  # no text
        return self._end(event)

    def _token(self, token: Token) -> Piece:
        order, tokenizer = self.order, self.order.model.tokenizer
        self.compute.add(token)
        self.ids.append(token.id)
        text = "" if order.hides_text else token.text
        self.pieces.append(text)
        records = [token_json(token)] if order.details else []
        self.records += records
        scored: list[ScoredToken] = []
        if order.logprobs is not None and not order.hides_text:
            one = ScoredToken.of(tokenizer, token.id, token.logprob, token.top_logprobs)
            if self._stream is None:
                self._stream = tokenizer.stream(
                    order.jobs[self.index].prompt, order.jobs[self.index].params.show_special
                )
            before = self._certain
            self._certain += len(self._stream.push(token.id))
            # A token can also make bytes before it certain, as characters that were never finished.
            own = self._certain - len(one.data.decode(errors="replace"))
            self._waiting.append((max(before, own), one))
            self._shown += len(text)
            scored = self._release()
        return self._piece([] if self._parser is None else self._parser.push(text), text, scored, records)

    def _piece(
        self,
        parts: Sequence[Part],
        text: str = "",
        scored: Sequence[ScoredToken] = (),
        records: Sequence[Mapping[str, Any]] = (),
    ) -> Piece:
        """Return what was added; where tools may be called, `parts` in place of `text`."""
        if self._parser is not None:
            most = self.order.most_calls
            parts = [part for part in parts if most is None or isinstance(part, TextPart) or part.index < most]
            self._answer.add(parts)
            text = "".join(part.text for part in parts if isinstance(part, TextPart))
        return Piece(self.index, text, parts, scored, records)

    def _release(self, *, all: bool = False) -> list[ScoredToken]:
        """Return the waiting tokens of which some text is shown, so that a stop string does not leak through them."""
        count = sum(all or begin < self._shown for begin, _ in self._waiting)  # they begin in rising order
        released = [one for _, one in self._waiting[:count]]
        del self._waiting[:count]
        self.scored += released
        return released

    def _prompt(self, event: PromptEvent) -> Piece:
        ids, tokenizer = self.order.jobs[self.index].prompt, self.order.model.tokenizer
        self.prompt = [
            ScoredToken.of(tokenizer, token, logprob, top)
            for token, logprob, top in zip(ids, event.logprobs, event.alternatives, strict=True)
        ]
        return Piece(self.index, prompt=self.prompt)

    def _end(self, event: EndEvent) -> Piece:
        self.end = event
        self.compute.ends.append(event)
        if event.reason == "error":
            raise event.error or ServeError("the text could not be computed; try again")
        if event.reason == "cancelled":
            raise UnavailableError("the server stopped before the text ended; try again", headers={"Retry-After": "1"})
        scored = self._release(all=event.reason == "length")
        piece = self._piece([] if self._parser is None else self._parser.flush(), scored=scored)
        self.reason = "tool_calls" if self.calls and event.reason != "length" else event.reason
        return replace(piece, finish_reason=self.reason)

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text; None if none did."""
        stops = self.order.jobs[self.index].params.stop
        if self.end is None or self.reason != "stop" or not stops:
            return None
        raw, shown = self.order.model.tokenizer.decode(self.ids), self.text
        places = {stop: raw.find(stop, max(len(shown) - 1, 0)) for stop in stops}
        return min((stop for stop in stops if places[stop] >= 0), key=lambda stop: places[stop], default=None)
