"""Ctrl-C and SIGTERM: the first stops the run after the current step, the second ends the process immediately."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

WATCHED = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal came while there was no step to finish."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class StopSignals:
    """Handles the signals while it is entered; outside `deferred()` the first one raises `Stopped` immediately.

    Checkpoints are renamed into place, so an immediate end leaves every file intact. Outside the main thread, Python
    delivers no signals and this does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.message = ""
        """Message when a signal comes while deferred; empty if another process prints it."""
        self._deferring = False
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """The exit code that a shell reports for the received signal; 0 for none."""
        return 0 if self.received is None else 128 + self.received

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in WATCHED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note the first signal in `received`, while entered."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            end_now(128 + number)
        self.received = number
        if not self._deferring:
            raise Stopped(number)
        if self.message:
            _write(f"\n{signal.Signals(number).name}: {self.message}; a second signal ends it immediately\n")


def end_now(exit_code: int) -> NoReturn:
    """End the process without running anything else."""
    _write("\x1b[?25h" if os.isatty(2) else "")  # the live line hides the cursor
    os._exit(exit_code)


def _write(text: str) -> None:
    """Write past Python's buffers, which may be locked while a signal is handled."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
