"""Renders chat templates in another process: one that would run for ever or take all memory ends only that one."""

import atexit
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from ...contract.errors import UserError
from ...contract.generation_settings import Dialect

PROGRAM = Path(__file__).with_name("render_process.py")
START_SECONDS = 60.0
SECONDS = 5.0
"""Time that a template may take; usual ones take a millisecond."""
MAX_TEMPLATE = 1_000_000
"""Characters of a template."""


class TemplateFailedError(UserError):
    """A template that does not compile, or fails on this conversation."""


class TemplateLimitError(UserError):
    """A template that takes too much time, or ended the process."""


class Renderer:
    """The process that renders templates, one at a time; started when first needed. May be used from any thread.

    Args:
        seconds: The time that a template may take.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None
        """The process, while it runs."""
        self._answers: Queue[str] = Queue()

    def render(self, template: str, dialect: Dialect, variables: Mapping[str, Any]) -> str:
        """Return the text that a template makes of `variables`, which are plain JSON.

        Raises:
            TemplateFailedError: It does not compile, or fails on these variables.
            TemplateLimitError: It takes too much time or memory.
            UserError: The variables are not JSON, or the process does not start.
        """
        if len(template) > MAX_TEMPLATE:
            raise TemplateLimitError(f"it has {len(template)} characters, at most {MAX_TEMPLATE}")
        try:
            request = json.dumps({"template": template, "dialect": dialect, "variables": variables}, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"found a conversation that is no JSON: {error}; correct it") from error
        with self._lock:
            process = self._started()
            assert process.stdin is not None
            try:
                process.stdin.write(request + "\n")
                process.stdin.flush()
            except OSError:  # it ended since
                self._stop()
                raise TemplateLimitError("it could not be rendered; try again") from None
            answer = self._answer(self._seconds)
            if answer is None:
                ended = process.poll() is not None
                self._stop()
                raise TemplateLimitError(
                    "it ended the process that renders templates"
                    if ended
                    else f"it takes more than {self._seconds:g} s"
                )
        if "error" in answer:
            raise TemplateFailedError(answer["error"])
        return str(answer["text"])

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
            [sys.executable, "-I", "-S", str(PROGRAM), *_libraries()], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, encoding="utf-8", start_new_session=True,
        )  # fmt: skip
        threading.Thread(target=_forward, args=(self.process, self._answers), daemon=True).start()
        if self._answer(START_SECONDS) != "ready":
            self._stop()
            raise UserError("the process that renders chat templates did not start; see that jinja2 can be imported")
        return self.process

    def _answer(self, seconds: float) -> Any:
        """Return the next answer; None where the process ended or did not answer in time."""
        try:
            line = self._answers.get(timeout=seconds)
        except Empty:
            return None
        return json.loads(line) if line else None

    def _stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdin is not None
            with contextlib.suppress(OSError):  # what was not written has no reader
                self.process.stdin.close()
            self.process = None


def _libraries() -> list[str]:
    """Return the folders that hold jinja2 and markupsafe."""
    folders = []
    for name in ("jinja2", "markupsafe"):
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise UserError(f"{name} is not installed, chat templates need it; type: pip install {name}")
        folders.append(str(Path(spec.origin).parent.parent))
    return list(dict.fromkeys(folders))


def _forward(process: "subprocess.Popen[str]", answers: "Queue[str]") -> None:
    """Put the lines of the process into the queue, and "" at its end."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            answers.put(line)
    answers.put("")


RENDERER = Renderer()
"""That of this program."""
atexit.register(RENDERER.close)
