"""Progress of a long measurement: one live line, or plain lines where stderr is not a terminal."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status

PLAIN_SECONDS = 10.0
"""Least time between two plain lines."""


class Progress:
    """Reports on stderr: `log` a line that stays, `show` what is being done now.

    Args:
        clock: Returns seconds; decides when a plain line is due.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._status: Status | None = None
        self._clock = clock
        self._shown = clock()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._status = self._console.status("")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def log(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, markup=False)

    def show(self, text: str) -> None:
        """Replace the live line; where there is none, print a plain line every ten seconds."""
        if self._status is not None:
            self._status.update(text)
        elif self._clock() - self._shown >= PLAIN_SECONDS:
            self._shown = self._clock()
            self.log(text)
