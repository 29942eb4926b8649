"""The weights of a run with adapters: a file of frozen ones beside its checkpoints, which hold the rest."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from ....contract.errors import UserError
from ....contract.files import cannot_write, write_whole
from ...model.config.lora import LoraConfig
from ...model.continued import is_buffer
from ...model.lora import ADAPTER, merged
from .mapped_tensors import MappedTensors
from .tensor_file import LazyTensor, write_tensors

BASE = "base.safetensors"
"""The frozen weights, in the folder of a run: a link to the file of the run that they come from, where that works."""
BASE_DIGEST = "base.json"


class AdaptedTensors(Mapping[str, Tensor]):
    """The weights of a model with their adapters merged, each computed when it is taken."""

    def __init__(self, base: Mapping[str, Tensor], own: Mapping[str, Tensor], lora: LoraConfig) -> None:
        self.base, self.own, self.lora = base, own, lora
        names = [name for name in base if not is_buffer(name)]
        self._names = dict.fromkeys([*names, *(name for name in own if ADAPTER not in name)])

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        if name in self.own:
            return self.own[name]
        return merged(name, lambda: self.base[name], self.own, self.lora)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def write_base(run: Path, weights: Mapping[str, Tensor], digest: Mapping[str, object]) -> None:
    """Put the frozen weights into the folder of a run, without a copy where the disk allows it.

    Args:
        run: The folder.
        weights: The weights of the run that training goes on from.
        digest: Size and sha256 of their file, as in complete.json.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        if isinstance(weights, MappedTensors):
            try:
                os.link(weights.path, run / BASE)  # no checkpoint is ever changed in place
            except OSError:
                shutil.copyfile(weights.path, run / BASE)
        else:
            digest = write_tensors(run / BASE, {name: _lazy(weights, name) for name in weights})
        write_whole(run / BASE_DIGEST, json.dumps(digest) + "\n")
    except OSError as error:
        raise cannot_write(run / BASE, error, "Nothing was trained") from error


def _lazy(weights: Mapping[str, Tensor], name: str) -> LazyTensor:
    first = weights[name]
    return LazyTensor(tuple(first.shape), first.dtype, lambda: weights[name])


def read_base(run: Path) -> MappedTensors:
    """Open the frozen weights of a run.

    Raises:
        UserError: The file is missing, or not the one that was written.
    """
    path = run / BASE
    try:
        expected = json.loads((run / BASE_DIGEST).read_bytes())
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != expected["sha256"]:
            raise UserError(f"{path} is not what was written there; restore it, or train again under another --name")
        return MappedTensors(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"cannot read {path}, the frozen weights of the run: {error}; restore it, or train again under another "
            "--name"
        ) from error
