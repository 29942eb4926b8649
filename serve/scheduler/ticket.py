"""A job on its way through the scheduler."""

import asyncio
from dataclasses import dataclass, field

from ...runtime.generation.request import Request
from ..errors import ServeError
from ..observe.observer import JobObserver
from .job import EndEvent, Job
from .stream import JobStream


@dataclass(eq=False)
class Ticket:
    """A job, the request that computes it, and the stream to its client."""

    job: Job
    request: Request
    stream: JobStream
    watch: JobObserver
    submitted: float
    dial: float | None
    """The `compute` in force."""
    expected: int
    """New tokens that it is expected to take."""
    begun: float | None = None
    """When it got a slot."""
    first_token: float | None = None
    """When its first token came."""
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)
    """Ends it at its deadline."""
    _read: int | None = field(default=None, repr=False)

    @property
    def work(self) -> float:
        """Return what it counts for between clients: new tokens, and those of the prompt at a fraction."""
        return self.request.prompt_tokens * PROMPT_WEIGHT + self.expected

    def read(self) -> int:
        """Return the tokens of the prompt that were computed since the last call."""
        request, sequence = self.request, self.request.sequence
        if self._read == request.prompt_tokens or (sequence is None and not request.new_tokens):
            return 0
        before = request.cached_tokens if self._read is None else self._read
        self._read = request.prompt_tokens if sequence is None else min(len(sequence.ids), request.prompt_tokens)
        return self._read - before

    def watch_end(self, reason: str) -> None:
        """Report the end to the observer."""
        request = self.request
        self.watch.ended(
            reason,
            dial=self.dial,
            cached_tokens=request.cached_tokens,
            drafted=request.drafted,
            accepted=request.accepted,
        )

    def end(self, now: float, reason: str, error: ServeError | None = None) -> EndEvent:
        """Return the last event of its stream."""
        request = self.request
        begun = now if self.begun is None else self.begun
        first = now if self.first_token is None else self.first_token
        return EndEvent(
            reason=reason,
            dial=self.dial,
            prompt_tokens=request.prompt_tokens,
            cached_tokens=request.cached_tokens,
            drafted=request.drafted,
            accepted=request.accepted,
            queue_seconds=begun - self.submitted,
            prompt_seconds=max(first - begun, 0.0),
            error=error,
        )


PROMPT_WEIGHT = 0.2
"""Cost of a token of a prompt, relative to a new one (docs/decisions/0028: 0.3 ms against 1 to 2.5)."""
