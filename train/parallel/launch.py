"""Starts the ranks of a run on this machine, by torch.distributed's own launcher in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from types import FrameType

GRACE_SECONDS = 600
"""What ranks may take to finish a step and save after a signal; whoever sent it kills sooner where it must."""


def launch(nproc: int, arguments: Sequence[str]) -> int:
    """Runs `adaptive ARGUMENTS` by so many ranks, passes SIGINT and SIGTERM on, and returns the exit code.

    `arguments` begin with `train`, as typed; --nproc is left out of them.
    """
    command = [sys.executable, "-m", __name__, str(nproc), *without_option(arguments[1:], "--nproc")]

    def pass_on(number: int, _: FrameType | None) -> None:
        child.send_signal(number)

    # In a session of its own, or Ctrl-C would come twice: from the terminal and from here.
    child = subprocess.Popen(command, start_new_session=True)
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def without_option(arguments: Sequence[str], option: str) -> list[str]:
    """The arguments without `option VALUE` and `option=VALUE`."""
    kept: list[str] = []
    skip = False
    for each in arguments:
        if not skip and each != option and not each.startswith(f"{option}="):
            kept.append(each)
        skip = not skip and each == option
    return kept


def main(nproc: int, arguments: Sequence[str]) -> int:
    """The launcher's process: the exit code of the rank that failed first, or 128 + the number of a signal."""
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # ranks say themselves what went wrong
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // nproc, 1)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port
        max_restarts=0,
        shutdown_timeout=GRACE_SECONDS,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "adaptive_lm.train", *arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
