"""Read the text files of a run: for the export, and for training that goes on from it."""

from pathlib import Path

from ...contract.errors import UserError
from ...contract.file_names import GENERATION
from ...contract.generation_settings import GenerationSettings


def read_run_file(path: Path) -> str:
    """Read a file of a run.

    Raises:
        UserError: It is missing, cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")  # not read_text, which would change the line ends of held-out text
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}, a file of the run: {error}; restore it or train again") from error


def read_generation(run: Path) -> GenerationSettings | None:
    """Read the ends, special tokens and sampling of an imported model; None of a model that was trained here.

    Raises:
        UserError: The file is damaged.
    """
    path = run / GENERATION
    return GenerationSettings.from_json(read_run_file(path), str(path)) if path.exists() else None
