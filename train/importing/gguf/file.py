"""A model in GGUF: one file, or the parts that llama.cpp splits a large one into, read one tensor at a time."""

import mmap
import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Self

import numpy as np
import torch
from gguf import GGMLQuantizationType, dequantize
from numpy.typing import NDArray
from torch import Tensor

from ....contract.errors import UserError
from .header import READABLE, TensorInfo, damaged, names_of, read_header
from .metadata import Metadata

PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
CHUNK = 2**22
"""Elements that are dequantised at once: intermediate results take several times their size."""
MAX_PARTS = 1000
HALVES = {GGMLQuantizationType.F16: torch.float16, GGMLQuantizationType.BF16: torch.bfloat16}
PLAIN = {GGMLQuantizationType.F32, *HALVES}
"""Types that are numbers of torch already."""


class GGUFFile:
    """The tensors and the metadata of a model in GGUF; a `TensorSource`.

    Raises:
        UserError: A file cannot be read, is no GGUF file or damaged, a part is missing, or a tensor is of a type that
            cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: Sequence[Path] = parts_of(path)
        self._bytes: dict[str, mmap.mmap] = {}
        self._tensors: dict[str, TensorInfo] = {}
        metadata: Metadata | None = None
        for part in self.parts:
            data = _map(part)
            header = read_header(data, part)
            metadata = metadata or Metadata(header.metadata, part)  # the first part holds it all
            for name, info in header.tensors.items():
                if name in self._tensors:
                    damaged(part, f"the tensor {name} is in an earlier part too")
                self._bytes[name], self._tensors[name] = data, info
        assert metadata is not None
        self.metadata = metadata
        self._check_types()
        self._check_parts()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; tensors that were read stay valid."""
        for data in set(self._bytes.values()):
            data.close()
        self._bytes.clear()

    def names(self) -> AbstractSet[str]:
        """Return the names of all tensors."""
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, rows first."""
        return self._tensors[name].shape

    def type_of(self, name: str) -> GGMLQuantizationType:
        """Return the type in which a tensor is stored."""
        return self._tensors[name].type

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype in which `read` returns a tensor."""
        return HALVES.get(self._tensors[name].type, torch.float32)

    def read(self, name: str) -> Tensor:
        """Read a tensor: half precision as it is stored, all else in float32."""
        info = self._tensors[name]
        raw = np.frombuffer(self._bytes[name], np.uint8, info.size, info.start)
        if info.type in PLAIN:
            # A copy: the file may be closed before the tensor is used.
            return torch.from_numpy(raw.copy()).view(self.dtype(name)).view(info.shape)
        return torch.from_numpy(dequantised(raw, info.type, info.shape))

    def _check_types(self) -> None:
        for name, info in self._tensors.items():
            if info.type not in READABLE:
                raise UserError(
                    f"{self.path}: the tensor {name} is stored as {info.type.name}, which cannot be read; quantise the "
                    f"model as one of {', '.join(names_of(READABLE))}"
                )

    def _check_parts(self) -> None:
        count = self.metadata.integer("split.count", 1)
        if count > 1 and len(self.parts) == 1:
            raise UserError(
                f"{self.path} is the first of {count} parts of a model, but its name does not end in "
                f"-00001-of-{count:05}.gguf: give the parts their own names again"
            )
        tensors = self.metadata.integer("split.tensors.count", len(self._tensors))
        if tensors != len(self._tensors):
            damaged(self.path, f"its parts hold {len(self._tensors)} tensors, expected {tensors}")


def parts_of(path: Path) -> Sequence[Path]:
    """List the files of the model that `path` belongs to, the first first.

    Raises:
        UserError: A part is missing.
    """
    match = PART.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if not 1 <= count <= MAX_PARTS:
        raise UserError(f"{path} says that it is one of {count:,} parts, expected 1 to {MAX_PARTS:,}; rename it")
    parts = [path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise UserError(
            f"{path} is one of {count} parts of a model, of which {len(missing)} are missing in {path.parent}: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}; download them into that folder"
        )
    return parts


def dequantised(raw: NDArray[np.uint8], kind: GGMLQuantizationType, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the numbers that the bytes `raw` of a quantised tensor stand for."""
    rows = raw.reshape(-1, len(raw) * shape[-1] // int(np.prod(shape)))
    numbers = np.empty((len(rows), shape[-1]), np.float32)
    with np.errstate(all="ignore"):  # a damaged scale may be infinite or nan; the export checks that
        for start, stop in _chunks(len(rows), max(1, CHUNK // shape[-1])):
            numbers[start:stop] = dequantize(rows[start:stop], kind)
    return numbers.reshape(shape)


def _chunks(length: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, length)) for start in range(0, length, size))


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:  # mmap refuses an empty file
        damaged(path, "it is empty")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; give a .gguf file") from None
