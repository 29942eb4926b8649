"""Write a run in the format of another program."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ...train.run.checkpoints.checkpoint import load_checkpoint
from ...train.run.find import find

Format = Literal["hf", "gguf", "peft"]


def export_to(
    to: Format,
    name: str | None,
    out: Path,
    *,
    checkpoint: str = "last",
    log: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write a run or checkpoint in a format, and return its path.

    Args:
        to: The format: a folder of Hugging Face, a file for llama.cpp, or a folder with adapters for peft.
        name: Name or path of a run, or path of a checkpoint; None takes the newest run.
        out: File or folder to write.
        checkpoint: Which checkpoint of a run: `best`, `last` or a step.
        log: Called with each line for the user.

    Raises:
        UserError: The format has no such model, or `out` cannot be written. Nothing is written then.
    """
    # imported here, since each format needs libraries of its own
    if to == "hf":
        from .hf import write
    elif to == "peft":
        from .peft import write
    else:
        from .gguf import write
    write(load_checkpoint(find(name, checkpoint)), out, log)
    return out
