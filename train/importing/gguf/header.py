"""The header of a GGUF file: its metadata, and where each tensor is. Every number is checked before it is used.

The reader of the package gguf is not used: it makes a numpy view of every token (4 s for a vocabulary of 49,152, here
0.1 s), and allocates by counts and offsets that it does not check. Its tables of types and its dequantisation are used.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from ....contract.errors import UserError

Value = bool | int | float | str | list[str] | NDArray[np.generic]
"""Value of a metadata key; arrays of numbers stay arrays."""

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER = 2**28
"""Bytes of the header; the largest vocabularies take a tenth of it."""
MAX_TEXT = 2**25
"""Bytes of one text, such as a chat template or a tokenizer.json in the metadata."""
MAX_NAME = 2**16
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 2**20
DEFAULT_ALIGNMENT = 32

SCALARS: dict[int, str] = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.FLOAT64: "d",
    GGUFValueType.BOOL: "?",
}
"""Letter of `struct`, and of numpy, for each type of number."""


class TensorInfo(NamedTuple):
    """The place of a tensor in the file."""

    name: str
    shape: tuple[int, ...]
    """Rows first, the other way round than in the file."""
    type: GGMLQuantizationType
    start: int
    """First byte, counted from the start of the file."""
    size: int
    """Bytes."""


class Header(NamedTuple):
    """What the header says."""

    metadata: dict[str, Value]
    tensors: dict[str, TensorInfo]


def damaged(path: Path, problem: str) -> NoReturn:
    """Refuse a file that breaks the format.

    Raises:
        UserError: Always.
    """
    raise UserError(f"{path} is damaged: {problem}; download it again, or convert the model again")


class _Cursor:
    """A position in the bytes of a file, which never passes `end`."""

    def __init__(self, data: "mmap.mmap | bytes", path: Path) -> None:
        self.data, self.path = data, path
        self.size = len(data)
        self.end = min(self.size, MAX_HEADER)
        self.place = 0

    def skip(self, size: int, what: str) -> int:
        """Pass `size` bytes, and return where they begin."""
        start = self.place
        if size > self.end - start:
            if size <= self.size - start:
                damaged(self.path, f"its header passes {MAX_HEADER:,} bytes at {what}")
            damaged(self.path, f"{what} needs {size:,} bytes at {start:,}, but the file ends at {self.size:,}")
        self.place += size
        return start

    def number(self, letter: str, what: str) -> int:
        """Read a number of the type that `letter` stands for in `struct`."""
        start = self.skip(struct.calcsize(letter), what)
        value: int = struct.unpack_from(f"<{letter}", self.data, start)[0]
        return value

    def count(self, least: int, what: str) -> int:
        """Read a count of things that take at least `least` bytes each, of which the header has room for all."""
        count = self.number("Q", what)
        if count > (self.end - self.place) // least:
            damaged(self.path, f"{what} is {count:,}, more than the {self.end - self.place:,} bytes after it can hold")
        return count

    def text(self, what: str, limit: int = MAX_TEXT) -> str:
        """Read a text with its length before it."""
        length = self.number("Q", f"the length of {what}")
        if length > limit:
            damaged(self.path, f"{what} has {length:,} bytes, expected at most {limit:,}")
        start = self.skip(length, what)
        try:
            return str(self.data[start : start + length], "utf-8")
        except UnicodeDecodeError as error:
            damaged(self.path, f"{what} at byte {start:,} is not UTF-8: {error.reason}")


def read_header(data: "mmap.mmap | bytes", path: Path) -> Header:
    """Read the header of the file whose bytes are `data`.

    Raises:
        UserError: It is no GGUF file, of another version, or damaged.
    """
    cursor = _Cursor(data, path)
    if data[:4] != MAGIC:
        raise UserError(
            f"{path} is not a GGUF file: it begins with {bytes(data[:4])!r}, expected {MAGIC!r}; give a .gguf file, or "
            "the folder of a Hugging Face model"
        )
    cursor.skip(4, "the magic number")
    version = cursor.number("I", "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        kind = "for big-endian machines" if swapped in VERSIONS else f"of version {version}"
        raise UserError(f"{path} is a GGUF file {kind}; expected version 2 or 3, little-endian: convert it again")
    tensors = cursor.count(24, "the number of tensors")
    entries = cursor.count(13, "the number of metadata entries")
    metadata: dict[str, Value] = {}
    for _ in range(entries):
        key = cursor.text("a metadata key", MAX_NAME)
        if key in metadata:
            damaged(path, f"the metadata key {key} occurs twice")
        metadata[key] = _value(cursor, key)
    infos = [_tensor_info(cursor) for _ in range(tensors)]
    return Header(metadata, _place(infos, cursor, _alignment(metadata, path)))


def _value(cursor: _Cursor, key: str) -> Value:
    kind = cursor.number("I", f"the type of {key}")
    if kind == GGUFValueType.STRING:
        return cursor.text(key)
    if kind == GGUFValueType.ARRAY:
        return _array(cursor, key)
    if kind not in SCALARS:
        damaged(cursor.path, f"the metadata key {key} has the unknown type {kind}")
    number = cursor.number(SCALARS[kind], key)
    # The shortest number with the same single precision, which is what the writer had: 1e-5, not 9.99999974e-06.
    return float(str(np.float32(number))) if kind == GGUFValueType.FLOAT32 else number


def _array(cursor: _Cursor, key: str) -> Value:
    kind = cursor.number("I", f"the type of the elements of {key}")
    if kind == GGUFValueType.STRING:
        return _texts(cursor, cursor.count(8, f"the length of {key}"), key)
    if kind not in SCALARS:
        damaged(cursor.path, f"the metadata key {key} is an array of the type {kind}, expected texts or numbers")
    dtype = np.dtype(SCALARS[kind]).newbyteorder("<")
    count = cursor.count(dtype.itemsize, f"the length of {key}")
    start = cursor.skip(count * dtype.itemsize, key)
    # A copy: the array outlives the mapped file.
    return (
        np.frombuffer(cursor.data, dtype, count, start).astype(dtype.newbyteorder("=")) if count else np.empty(0, dtype)
    )


def _texts(cursor: _Cursor, count: int, key: str) -> list[str]:
    """Read an array of texts, such as a vocabulary: the one long part of a header, hence without `_Cursor.text`."""
    data, place, end = cursor.data, cursor.place, cursor.end
    unpack: Callable[..., tuple[int]] = struct.Struct("<Q").unpack_from
    texts = []
    for number in range(count):
        length = unpack(data, place)[0] if place + 8 <= end else end
        if length > end - place - 8:
            damaged(cursor.path, f"element {number:,} of {key} passes the end of the header")
        try:
            texts.append(str(data[place + 8 : place + 8 + length], "utf-8"))
        except UnicodeDecodeError:
            damaged(cursor.path, f"element {number:,} of {key} is not UTF-8")
        place += 8 + length
    cursor.place = place
    return texts


def _alignment(metadata: dict[str, Value], path: Path) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        damaged(path, f"general.alignment is {alignment}, expected a power of two up to {MAX_ALIGNMENT:,}")
    return alignment


def _tensor_info(cursor: _Cursor) -> TensorInfo:
    """Read the entry of a tensor; its `start` is still relative to the data."""
    name = cursor.text("the name of a tensor", MAX_NAME)
    dimensions = cursor.number("I", f"the number of dimensions of {name}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        damaged(cursor.path, f"{name} has {dimensions:,} dimensions, expected 1 to {MAX_DIMENSIONS}")
    shape = tuple(cursor.number("Q", f"the shape of {name}") for _ in range(dimensions))[::-1]
    number = cursor.number("I", f"the type of {name}")
    start = cursor.number("Q", f"the offset of {name}")
    if number not in set(GGMLQuantizationType):
        raise UserError(
            f"{cursor.path}: the tensor {name} is of type {number}, which is not one of GGUF; convert the model again, "
            f"with one of {', '.join(names_of(READABLE))}"
        )
    kind = GGMLQuantizationType(number)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    elements = math.prod(shape)
    if not 0 < elements <= cursor.size * 256:  # no type has more than 256 elements a byte
        damaged(cursor.path, f"{name} has the shape {shape}, which the file has no room for")
    if shape[-1] % block:
        damaged(
            cursor.path, f"{name} has rows of {shape[-1]}, no multiple of the {block} elements of a {kind.name} block"
        )
    return TensorInfo(name, shape, kind, start, elements // block * block_bytes)


def _place(infos: list[TensorInfo], cursor: _Cursor, alignment: int) -> dict[str, TensorInfo]:
    """Check where the tensors are, and count their places from the start of the file."""
    path, data_start = cursor.path, -(-cursor.place // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    end, before = data_start, "the header"
    for info in sorted(infos, key=lambda info: info.start):
        start = data_start + info.start
        if info.name in tensors:
            damaged(path, f"the tensor {info.name} occurs twice")
        if info.start % alignment:
            damaged(path, f"{info.name} starts at {info.start:,}, no multiple of the alignment {alignment}")
        if start + info.size > cursor.size:
            damaged(path, f"{info.name} ends at byte {start + info.size:,}, but the file at {cursor.size:,}")
        if start < end:
            damaged(path, f"{info.name} overlaps {before}")
        tensors[info.name] = info._replace(start=start)
        end, before = start + info.size, info.name
    return tensors


UNREADABLE = {"Q8_1", "Q8_K", "Q1_0", "F64", "I8", "I16", "I32", "I64"}
"""Types of GGUF that `gguf.dequantize` does not read: intermediate results, and integers."""
READABLE = frozenset(kind for kind in GGMLQuantizationType if kind.name not in UNREADABLE)
"""Types that can be imported; a test compares them with those that `gguf.dequantize` reads."""


def names_of(kinds: Iterable[GGMLQuantizationType]) -> list[str]:
    """Return the names of types, in the order of their numbers."""
    return [kind.name for kind in sorted(kinds)]
