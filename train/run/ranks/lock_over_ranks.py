"""The lock and the newest checkpoint of a run, for all ranks."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from ....contract.errors import UserError
from ...parallel.world import World
from ...system.progress import Progress
from ..checkpoints.checkpoint import Checkpoint, newest_good, read_checkpoint
from ..folder import Run


@contextlib.contextmanager
def held(run: Run, world: World) -> Iterator[None]:
    """Hold the run's lock on the first rank, while entered.

    Raises:
        UserError: on entering, another process trains it, or its folder cannot be written.
    """
    world.on_rank_zero(run.__enter__)
    try:
        yield
    finally:
        if world.is_first:
            run.__exit__(*sys.exc_info())


def newest(run: Run, world: World, display: Progress) -> Checkpoint | None:
    """Read the newest good checkpoint, which the first rank chooses; None if there is none.

    Raises:
        UserError: all checkpoints are damaged, or a rank does not see the folder.
    """
    checkpoint = world.on_rank_zero(lambda: newest_good(run.path, lambda text: display.log(f"warning: {text}")))
    path = world.broadcast_text(str(checkpoint.path.resolve()) if checkpoint else "")
    return world.run_together(lambda: checkpoint or _read(Path(path))) if path else None


def _read(path: Path) -> Checkpoint:
    try:
        return read_checkpoint(path)
    except (ValueError, OSError) as error:
        raise UserError(
            f"{error}; the first rank has read it, so runs must be in a folder that all machines share"
        ) from error
