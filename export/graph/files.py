"""Write a graph and, in a second file, its large weights."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import onnx
from onnx import TensorProto

from ...runtime.ops.layout import ALIGNMENT
from .builder import SMALL, Array, Later


@dataclass(frozen=True)
class WrittenFile:
    """A file that was written."""

    path: Path
    bytes: int
    sha256: str


def save(proto: onnx.ModelProto, graph: Path, weights: Path, later: Later | None = None) -> list[WrittenFile]:
    """Write a model, each large weight at a multiple of ALIGNMENT bytes, and return the files that were written.

    ONNX Runtime maps the file of the weights into memory, so an operator reads a weight at that alignment.

    Args:
        proto: The model. It is changed: its large weights then point to the file.
        graph: The file of the graph.
        weights: The file of the weights.
        later: The weights that are not in `proto`; they are computed one after the other.
    """
    files = []
    with _Writer(weights) as data:
        for tensor in _weights(proto.graph):
            lazy = (later or {}).get(tensor.name)
            size = len(tensor.raw_data) if lazy is None else lazy.nbytes
            if size < SMALL:
                continue
            data.write(bytes(-data.size % ALIGNMENT))
            begin = data.size
            for content in [tensor.raw_data] if lazy is None else lazy.pieces():
                data.write(content)
            assert data.size == begin + size, f"{tensor.name} has {data.size - begin} bytes, expected {size}"
            _point_to(tensor, weights.name, begin, size)
    if data.size:
        files.append(data.written())
    else:
        weights.unlink()
    with _Writer(graph) as file:
        file.write(proto.SerializeToString())
    return [file.written(), *files]


def size_of(proto: onnx.ModelProto, later: Later) -> int:
    """Return the bytes of the two files that `save` would write, apart from padding."""
    return int(proto.ByteSize()) + sum(
        later[tensor.name].nbytes for tensor in _weights(proto.graph) if tensor.name in later
    )


class _Writer:
    """Writes a file, with the digest of its content; on leaving it is on the disk."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        self._file = self.path.open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())

    def write(self, content: bytes | Array) -> None:
        data = content if isinstance(content, bytes) else content.reshape(-1).view(np.uint8).data
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def written(self) -> WrittenFile:
        return WrittenFile(self.path, self.size, self._digest.hexdigest())


def _weights(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Yield the initializers of a graph and of its branches."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _weights(attribute.g)


def _point_to(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
