"""Calls into native code that runs for minutes, during which signals still end the program immediately."""

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")
POLL_SECONDS = 0.1  # a wait without an end cannot be interrupted on Windows


def run_interruptibly(call: Callable[[], Result]) -> Result:
    """Return what `call` returns, from a thread of its own, so that the caller's thread stays open to signals.

    An exception of `call` is raised here. One that a signal raises here leaves `call` behind in a daemon thread, which
    ends with the process. Only native code that releases the interpreter lock gains by this.
    """
    outcome: list[Result] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # it is raised in the caller's thread
            failure.append(error)

    thread = threading.Thread(target=run, name="native call", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
    if failure:
        raise failure[0]
    return outcome[0]
