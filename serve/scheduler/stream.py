"""The events of one job, on the side of asyncio."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Self

from .job import EndEvent, Event


class JobStream:
    """The events of one job, in order; see `Stream`.

    A slow reader does not hold up other clients: its unread events wait here, at most one for each token of the text.

    Args:
        on_cancel: Called when the reader cancels a job that has not ended.
        on_end: Called when the last event comes.
    """

    def __init__(self, on_cancel: Callable[[], None], on_end: Callable[[], None]) -> None:
        self._on_cancel, self._on_end = on_cancel, on_end
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.ended = False
        """Whether the last event has come; later ones are dropped."""

    def push(self, events: Iterable[Event]) -> None:
        """Add events; call it in the event loop of the reader."""
        for event in events:
            if self.ended:
                return
            self._events.append(event)
            if isinstance(event, EndEvent):
                self.ended = True
                self._on_end()
                self._on_cancel = self._on_end = _nothing  # they hold the job, which holds this
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Event]:
        """Wait for at least one event and return all that there are; none after the end."""
        if not self._events and not self.ended:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        events = list(self._events)
        self._events.clear()
        return events

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if not self._events:
            events = await self.take()
            if not events:
                raise StopAsyncIteration
            self._events.extend(events)
        return self._events.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """End the job with the reason "cancelled" and free its slot, within one token."""
        if not self.ended:
            self._on_cancel()


def _nothing() -> None:
    pass
