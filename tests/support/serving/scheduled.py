"""The server's scheduler in this process, without HTTP: jobs in, events out."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from adaptive_lm.runtime import Params
from adaptive_lm.serve.observe.observer import Observer
from adaptive_lm.serve.scheduler.job import EndEvent, Event, Job, Stream, TokenEvent
from adaptive_lm.serve.scheduler.local import LocalScheduler
from adaptive_lm.serve.scheduler.open import open_scheduler
from adaptive_lm.serve.settings import Settings
from support.serving.until import BOUND


def job(text: str = "hello", new: int = 8, client: str = "a", **changes: Any) -> Job:
    """Make a job whose tokens are not drawn at random."""
    params = changes.pop("params", Params(temperature=0, max_new_tokens=new))
    return Job(prompt=tuple(text.encode()), params=params, client=client, **changes)


@asynccontextmanager
async def serving(*models: Path, observer: Observer | None = None, **settings: Any) -> AsyncIterator[LocalScheduler]:
    """Open a scheduler of models, and wait until they are ready."""
    options = Settings(models=tuple(map(str, models)), threads=1, device="cpu", **settings)
    scheduler = open_scheduler(options, observer)
    await scheduler.start()
    try:
        await asyncio.wait_for(scheduler.ready(), BOUND)
        yield scheduler
    finally:
        await scheduler.close()


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test in an event loop, for a bounded time."""
    asyncio.run(asyncio.wait_for(test, 3 * BOUND))


async def whole(stream: Stream) -> tuple[list[int], EndEvent]:
    """Read a stream to its end; return its tokens and its last event."""
    events = [event async for event in stream]
    assert isinstance(events[-1], EndEvent)
    return ids(events), events[-1]


def ids(events: Sequence[Event]) -> list[int]:
    """Return the tokens of events."""
    return [event.token.id for event in events if isinstance(event, TokenEvent)]


async def tokens_of(folder: Path, target: str, jobs: Sequence[Job], *, max_batch: int = 8) -> list[list[int]]:
    """Submit all jobs at once to a scheduler of the model in `folder`, and return the tokens of each."""
    async with serving(folder, target=target, max_batch=max_batch) as scheduler:
        name = scheduler.models()[0].name
        results = []
        for stream in [await scheduler.submit(name, job) for job in jobs]:
            tokens, end = await whole(stream)
            assert end.error is None
            results.append(tokens)
        return results
