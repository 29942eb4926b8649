"""What a person sees while a long measurement runs: one live line, or plain lines where stderr is no terminal."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status

PLAIN_SECONDS = 10.0


class Progress:
    """`say` tells a line of the story for good, `show` what is being done now; all of it on stderr."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._status: Status | None = None
        self._shown = time.monotonic()

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

    def say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def show(self, text: str) -> None:
        """Replaces the live line; where there is none, a plain line every ten seconds."""
        if self._status is not None:
            self._status.update(text)
        elif time.monotonic() - self._shown >= PLAIN_SECONDS:
            self._shown = time.monotonic()
            self.say(text)
