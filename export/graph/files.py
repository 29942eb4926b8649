"""Write a graph and, in a second file, its large weights."""

import os
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from ...runtime.ops.layout import ALIGNMENT

SMALL = 1024
"""Weights of fewer bytes stay in the graph's own file."""


def save(proto: onnx.ModelProto, graph: Path, weights: Path) -> list[Path]:
    """Write a model, each large weight at a multiple of ALIGNMENT bytes, and return the files that were written.

    ONNX Runtime maps the file of the weights into memory, so an operator reads a weight at that alignment. `proto` is
    changed: its large weights then point to the file.
    """
    with weights.open("wb") as file:
        for tensor in _weights(proto.graph):
            content = tensor.raw_data
            if len(content) < SMALL:
                continue
            file.write(bytes(-file.tell() % ALIGNMENT))
            _point_to(tensor, weights.name, file.tell(), len(content))
            file.write(content)
        written = file.tell()
        file.flush()
        os.fsync(file.fileno())
    if not written:
        weights.unlink()
    with graph.open("wb") as file:
        file.write(proto.SerializeToString())
        file.flush()
        os.fsync(file.fileno())
    return [graph, weights] if written else [graph]


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
