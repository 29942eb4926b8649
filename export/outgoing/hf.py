"""Write a run as a folder of Hugging Face."""

from collections.abc import Callable
from pathlib import Path

from ...contract.errors import UserError


def export_hf(
    name: str | None, out: Path, *, checkpoint: str = "last", log: Callable[[str], None] = lambda line: None
) -> Path:
    """Write a run or checkpoint as a folder of the nearest Hugging Face family, and return its path.

    Args:
        name: Name or path of a run, or path of a checkpoint; None takes the newest run.
        out: Folder to write.
        checkpoint: Which checkpoint of a run: `best`, `last` or a step.
        log: Called with each line for the user.

    Raises:
        UserError: No family has the features of this model, or the folder cannot be written. Nothing is written then.
    """
    raise UserError("--to hf is not part of this version yet")
