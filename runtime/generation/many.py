"""The texts of many prompts, in the order of the prompts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .loop import Event, Loop
from .request import Request, Token

AHEAD = 8
"""Prompts per slot that may begin before an earlier one has ended, which bounds how many texts wait for it."""


@dataclass
class Completion:
    """What came of one prompt."""

    index: int
    """Its place among the prompts, from 0."""
    request: Request | None
    """Its settings and state; None where the prompt was refused."""
    error: Exception | None = None
    """Why there is no text, or no more of it; None where nothing failed."""
    tokens: list[Token] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(token.text for token in self.tokens)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.request is None or self.request.status == "ended"


class Completions(Iterator[Completion]):
    """Iterates over completions in the order of the prompts; made by `Engine.generate_many`."""

    def __init__(self, loop: Loop, completions: list[Completion], watch: Callable[[Event], None] | None) -> None:
        self._loop = loop
        self._completions = completions  # those that were not returned yet, the next one first
        self._by_request = {one.request: one for one in completions if one.request is not None}
        self._waiting = [one for one in reversed(completions) if one.request is not None]
        self._watch = watch

    def __iter__(self) -> "Completions":
        return self

    def __next__(self) -> Completion:
        while self._completions:
            first = self._completions[0]
            if first.request is not None and first.request.cancelled:
                raise RuntimeError("another generation of this engine began; an engine runs one at a time")
            if first.ended:
                self._completions.pop(0)
                return first
            self._submit(first.index)
            for event in self._loop.step():
                self._record(event)
        raise StopIteration

    def rest(self) -> list[Completion]:
        """Return the completions that have ended and were not returned, and drop the others: after an interruption."""
        ended = [one for one in self._completions if one.ended]
        self.close()
        return ended

    def close(self) -> None:
        """End what is going on, and free the slots."""
        for one in self._by_request:
            if one.status != "ended":
                self._loop.cancel(one)
        self._completions, self._waiting, self._by_request = [], [], {}

    def _submit(self, first: int) -> None:
        slots = self._loop.batch.slots
        while (
            self._waiting and self._waiting[-1].index < first + AHEAD * slots and len(self._loop.requests) < 2 * slots
        ):
            one = self._waiting.pop()
            assert one.request is not None
            self._loop.submit(one.request)

    def _record(self, event: Event) -> None:
        one = self._by_request.get(event.request)
        if one is None:
            return
        if event.token is not None:
            one.tokens.append(event.token)
        one.error = event.request.error
        if event.last:
            del self._by_request[event.request]
        if self._watch is not None:
            self._watch(event)
