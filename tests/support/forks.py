"""The command line in a fork of the process of the tests, which spares the three seconds of importing torch."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Self

import pytest
import torch

from adaptive_lm.serve.cli import main

needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork") or torch.cuda.is_available(),
    reason="needs a POSIX system, and a process in which torch has not begun to use a GPU",
)


class Fork:
    """A process that runs `adaptive ARGUMENTS` with one thread, after `prepare`, which may replace parts of it."""

    def __init__(self, arguments: list[str], prepare: Callable[[], object] = lambda: None) -> None:
        out, error = os.pipe(), os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12 warns of other threads, of which none works now
            self.pid = os.fork()
        if not self.pid:
            os.dup2(out[1], 1)
            os.dup2(error[1], 2)
            run(arguments, prepare)
        os.close(out[1])
        os.close(error[1])
        self.stdout, self.stderr = os.fdopen(out[0]), os.fdopen(error[0])
        self.returncode: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        self.stdout.close()
        self.stderr.close()

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int:
        """Wait for the end of the process; return its exit code."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    def communicate(self) -> tuple[str, str]:
        """Return the rest of what it prints on stdout and on stderr, and wait for its end."""
        said = self.stdout.read(), self.stderr.read()
        self.wait()
        return said


def run(arguments: list[str], prepare: Callable[[], object]) -> None:
    """Run the command and end this process, without the exit handlers and the captured streams of the tests."""
    code = 70
    try:
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w", buffering=1)  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1)  # type: ignore[misc]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        sys.argv = ["adaptive", *arguments]
        prepare()
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
