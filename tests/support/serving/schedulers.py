"""Schedulers that fail, wait, or say what a test wants."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from adaptive_lm.serve.errors import ServeError
from adaptive_lm.serve.scheduler.job import EndEvent, Event, Job, Load, ModelInfo, Scheduler, Status, TokenEvent
from adaptive_lm.serve.scheduler.open import model_info


class FailingScheduler:
    """Fails each job after some tokens.

    Args:
        inner: Where the tokens come from.
        error: The failure.
        after: Tokens before it.
    """

    def __init__(self, inner: Scheduler, error: ServeError, after: int) -> None:
        self.inner, self.error, self.after = inner, error, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def submit(self, model: str, job: Job) -> Any:
        """Queue a job that fails."""
        return FailingStream(await self.inner.submit(model, job), self.error, self.after)


class FailingStream:
    """A stream that ends with an error after some tokens."""

    def __init__(self, inner: Any, error: ServeError, after: int) -> None:
        self.inner, self.error, self.left = inner, error, after

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.inner.cancel()

    async def take(self) -> list[Event]:
        """Return the events that are left before the failure, then the failure."""
        taken: list[Event] = []
        while self.left:
            for event in await self.inner.take():
                if isinstance(event, TokenEvent) and self.left:
                    self.left -= 1
                    taken.append(event)
            if taken:
                return taken
        return [EndEvent("error", None, 0, 0, 0, 0, 0.0, 0.0, error=self.error)]


class ScriptedScheduler:
    """Answers each job with given pieces of text, one a token, in place of those of the model.

    Args:
        inner: Where the usage of the tokens comes from.
        pieces: The text of each token.
        reason: Why the text ends.
    """

    def __init__(self, inner: Scheduler, pieces: Sequence[str] = (), reason: str = "eos") -> None:
        self.inner, self.pieces, self.reason = inner, pieces, reason
        self.jobs: list[Job] = []
        """The jobs so far."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def submit(self, model: str, job: Job) -> Any:
        """Queue a job whose text is the script."""
        self.jobs.append(job)
        return ScriptedStream(await self.inner.submit(model, job), list(self.pieces), self.reason)


class ScriptedStream:
    """A stream of given pieces of text."""

    def __init__(self, inner: Any, pieces: list[str], reason: str) -> None:
        self.inner, self.pieces, self.reason = inner, pieces, reason
        self.ended = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.inner.cancel()

    async def take(self) -> list[Event]:
        """Return all pieces, each as a token, and the end."""
        if self.ended:
            return []
        first = None
        while first is None:
            first = next((event for event in await self.inner.take() if isinstance(event, TokenEvent)), None)
        self.ended = True
        tokens: list[Event] = [TokenEvent(replace(first.token, text=piece)) for piece in self.pieces]
        return [*tokens, EndEvent(self.reason, None, 0, 0, 0, 0, 0.0, 0.0)]


class HeldScheduler:
    """Gives streams in which nothing happens, and counts those that are cancelled."""

    def __init__(self, models: Sequence[ModelInfo], status: Status = "ready") -> None:
        self.infos, self.status = models, status
        self.streams: list[HeldStream] = []

    @classmethod
    def of(cls, folder: Path) -> "HeldScheduler":
        """Hold the model in `folder`, without opening it."""
        return cls([model_info(folder)])

    def models(self) -> Sequence[ModelInfo]:
        """List the models."""
        return self.infos

    def load(self, model: str | None = None) -> Load:
        """Count the streams."""
        return Load(running=sum(not one.cancelled for one in self.streams), waiting=0, tokens_per_second=0.0)

    async def submit(self, model: str, job: Job) -> Any:
        """Give a stream."""
        self.streams.append(HeldStream(job))
        return self.streams[-1]


class HeldStream:
    """A stream in which nothing happens until its `events` are filled."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.cancelled = False
        self.events: asyncio.Queue[list[Event]] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancelled = True

    async def take(self) -> list[Event]:
        """Wait for events."""
        return await self.events.get()
