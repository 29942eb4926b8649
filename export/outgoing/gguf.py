"""Write a run as a GGUF file."""

from collections.abc import Callable
from pathlib import Path

from ...contract.errors import UserError


def export_gguf(
    name: str | None, out: Path, *, checkpoint: str = "last", log: Callable[[str], None] = lambda line: None
) -> Path:
    """Write a run or checkpoint as one GGUF file, and return its path.

    Args:
        name: Name or path of a run, or path of a checkpoint; None takes the newest run.
        out: File to write.
        checkpoint: Which checkpoint of a run: `best`, `last` or a step.
        log: Called with each line for the user.

    Raises:
        UserError: llama.cpp has no such model, or the file cannot be written. Nothing is written then.
    """
    raise UserError("--to gguf is not part of this version yet; use --to hf")
