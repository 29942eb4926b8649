"""Compiles a grammar in another process first: one that would take for ever or end the process ends only that one."""

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from ...contract.errors import UserError

PROGRAM = Path(__file__).with_name("trial_process.py")
START_SECONDS = 60.0


class Trial:
    """The process that compiles grammars on trial, one at a time; started when first needed.

    Args:
        seconds: The time that a grammar may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None
        """The process, while it runs."""
        self._answers: Queue[str] = Queue()

    def error_of(self, grammar: str, limits: dict[str, Any], ids: int = 0) -> str:
        """Return why a grammar cannot be compiled, "" if it can.

        Args:
            grammar: The grammar.
            limits: Limits of llguidance.
            ids: The token ids that it may name are below this.

        Raises:
            UserError: The process does not start.
        """
        with self._lock:
            process = self._started()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps({"grammar": grammar, "limits": limits, "ids": ids}) + "\n")
                process.stdin.flush()
            except OSError:  # it ended since
                self._stop()
                return "it could not be tried; try again"
            answer = self._answer(self._seconds)
            if answer is not None:
                return answer
            ended = process.poll() is not None
            self._stop()
            return "it takes too much memory" if ended else f"it takes more than {self._seconds:g} s to compile"

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()

    def _started(self) -> "subprocess.Popen[str]":
        if self.process is not None and self.process.poll() is None:
            return self.process
        self._stop()
        self._answers = Queue()
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, encoding="utf-8", start_new_session=True,
        )  # fmt: skip
        threading.Thread(target=_forward, args=(self.process, self._answers), daemon=True).start()
        if self._answer(START_SECONDS) != "ready":
            self._stop()
            raise UserError("the process that compiles grammars did not start; see that llguidance can be imported")
        return self.process

    def _answer(self, seconds: float) -> str | None:
        """Return the next answer; None where the process ended or did not answer in time."""
        try:
            line = self._answers.get(timeout=seconds)
        except Empty:
            return None
        return str(json.loads(line)) if line else None

    def _stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdin is not None
            with contextlib.suppress(OSError):  # what was not written has no reader
                self.process.stdin.close()
            self.process = None


def _forward(process: "subprocess.Popen[str]", answers: "Queue[str]") -> None:
    """Put the lines of the process into the queue, and "" at its end."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            answers.put(line)
    answers.put("")
