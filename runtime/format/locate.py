"""Finds the exported model that a person means."""

from pathlib import Path

from ...contract.errors import UserError
from ...contract.file_names import MANIFEST

PATTERN = f"runs/*/model/{MANIFEST}"


def find_model(wanted: str | None) -> Path:
    """The folder of an exported model: `wanted`, the `model` folder of the run `wanted`, or the newest under runs/.

    Raises UserError where there is none at all; what is wrong with a given folder, `Manifest.read` says.
    """
    if wanted is not None:
        folder = Path(wanted)
        inside = folder / "model"
        return inside if not (folder / MANIFEST).exists() and (inside / MANIFEST).exists() else folder
    found = sorted(Path().glob(PATTERN), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(
            f"no exported model under {Path.cwd() / 'runs'}: expected {PATTERN}; "
            "make one with: adaptive export --onnx, or name one with: --model FOLDER"
        )
    return found[-1].parent
