"""Start the ranks of a run on this machine, with the launcher of torch.distributed in a process of its own."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from types import FrameType

GRACE_SECONDS = 600
"""Time that ranks have to finish a step and save after a signal; the sender can kill them sooner."""


def launch(nproc: int, arguments: Sequence[str]) -> int:
    """Run `adaptive ARGUMENTS` with `nproc` ranks, forward SIGINT and SIGTERM to them, and return the exit code.

    `arguments` begin with `train`, as typed; --nproc is removed from them.
    """
    command = [sys.executable, "-m", __name__, str(nproc), *without_option(arguments[1:], "--nproc")]

    def pass_on(number: int, _: FrameType | None) -> None:
        child.send_signal(number)

    # In its own process session, or Ctrl-C would arrive twice: from the terminal and from here.
    child = subprocess.Popen(command, start_new_session=True)
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def without_option(arguments: Sequence[str], option: str) -> list[str]:
    """Remove `option VALUE` and `option=VALUE` from the arguments."""
    rest: list[str] = []
    skip = False
    for each in arguments:
        if not skip and each != option and not each.startswith(f"{option}="):
            rest.append(each)
        skip = not skip and each == option
    return rest


def main(nproc: int, arguments: Sequence[str]) -> int:
    """Launch the ranks and return the exit code of the one that failed first, or 128 + the number of a signal."""
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # ranks report their own errors
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
