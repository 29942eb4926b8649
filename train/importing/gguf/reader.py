"""The reader of GGUF files."""

from pathlib import Path

from ..errors import UnsupportedModelError
from ..source import ForeignModel, Work


def read_gguf(path: Path, work: Work) -> ForeignModel:
    """Read a model from a GGUF file; its weights stay on the disk.

    Raises:
        UserError: It cannot be read, or not computed here.
    """
    raise UnsupportedModelError(
        f"{path} is a GGUF file, which this version cannot read yet; import the folder of the same model with "
        "config.json and *.safetensors"
    )
