"""The life of a scheduler as that of the application in front of it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from adaptive_lm.serve.scheduler.local import LocalScheduler


def lifespan_of(scheduler: LocalScheduler) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """Start the scheduler with the application, wait until it is ready, and close it at the end."""

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        await scheduler.start()
        await scheduler.ready()
        yield
        await scheduler.close()

    return lifespan
