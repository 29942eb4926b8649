"""A fault of observing must not end a generation."""

import functools
import time
from collections.abc import Callable
from typing import ParamSpec

import structlog

P = ParamSpec("P")
QUIET_SECONDS = 60.0
"""Between two reports of the same fault, which may happen at every token."""
log = structlog.get_logger("adaptive")


def guarded(method: Callable[P, None]) -> Callable[P, None]:
    """Log what the method raises instead of passing it on."""
    reported = float("-inf")

    @functools.wraps(method)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> None:
        nonlocal reported
        try:
            method(*args, **kwargs)
        except Exception:
            now = time.monotonic()
            if now - reported >= QUIET_SECONDS:
                reported = now
                log.exception("observing failed", method=method.__qualname__)

    return quiet
