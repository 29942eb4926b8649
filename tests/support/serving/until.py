"""Wait in an event loop until a condition holds."""

import asyncio
from collections.abc import Callable

BOUND = 10.0
"""Seconds after which something that should happen has failed."""


async def until(condition: Callable[[], object], seconds: float = BOUND) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: It does not hold in time.
    """
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)
