"""One rank of `adaptive train ARGUMENTS`, as started by `torchrun ... -m adaptive_lm.train ARGUMENTS`.

Only the first rank writes to the terminal; a user's mistake ends all ranks with one message and one exit code.
"""

from __future__ import annotations

import contextlib
import os
import sys

import click

from ..contract.errors import UserError
from ..contract.streams import guard_streams
from .commands.train import train


def run(arguments: list[str]) -> int:
    """Train, and return the exit code."""
    from .parallel.world import join, leave

    try:
        guard_streams()
        join()
        code = train.main(arguments, "python -m adaptive_lm.train", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except RuntimeError as error:
        if "gloo" not in str(error) and "NCCL" not in str(error):
            raise
        # Another rank died, not this one. The process that started the ranks ends them all.
        reason = str(error).splitlines()[0].partition(". ")[0]
        os.write(
            2, f"rank {os.environ.get('RANK')}: lost another rank; the checkpoints are intact ({reason})\n".encode()
        )
        return 1
    finally:
        leave()
    return int(code or 0)


def main() -> None:
    """Run this rank, and exit."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see commands/train.py; torch is loaded before it is called
    with contextlib.ExitStack() as stack:
        if os.environ.get("RANK", "0") != "0":
            discard = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123 - no path of ours
            stack.enter_context(contextlib.redirect_stdout(discard))
            stack.enter_context(contextlib.redirect_stderr(discard))
        code = run(sys.argv[1:])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from .parallel.world import end

        end(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
