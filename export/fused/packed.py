"""Nodes of our operators, and the weights that they read: packed matrices and float32 vectors."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...runtime.format.manifest import Precision
from ...runtime.ops.layout import GROUP, PRECISIONS, pack, packed_bytes, padded
from ...runtime.ops.probe import DOMAIN
from ...train.model.config.model import ModelConfig
from ..graph.builder import Array, Graph
from ..graph.lazy_array import LazyArray
from ..graph.weights import Weights


def ours(
    g: Graph, op_type: str, *inputs: str, outputs: int = 1, results: Sequence[str] = (), **attributes: Any
) -> tuple[str, ...]:
    """Add a node of our domain and return its outputs; an input that the model has not is an empty name."""
    return g.ops(op_type, *inputs, outputs=outputs, results=results, domain=DOMAIN, **attributes)


def number(precision: Precision) -> int:
    """Return the number by which an attribute states a precision."""
    return PRECISIONS.index(precision)


def matrix(g: Graph, weights: Weights, name: str) -> str:
    """Pack a matrix (O, I), or experts (E, I, O), in the precision of its part, once for all its readers."""
    packed = f"{name}.packed"
    if packed in g.initializers:
        return packed
    return g.weight(packed, pack_lazily(weights.lazy(name), weights.precision_of(name), weights.scales.get(name)))


def pack_lazily(weight: LazyArray, precision: Precision, scales: Array | None = None) -> LazyArray:
    """Pack a matrix (O, I), or experts (E, I, O), when it is read: groups of outputs or experts a few at a time.

    Args:
        weight: The matrix.
        precision: Precision to round to.
        scales: As `layout.quantize` takes them, (O, blocks) or (E, O, blocks).
    """
    if weight.ndim == 3:
        _, inputs, outputs = weight.shape

        def pack_experts(stack: Array, at: slice) -> Array:
            return pack(stack.swapaxes(1, 2), precision, None if scales is None else scales[at]).reshape(len(stack), -1)

        size = packed_bytes(precision, outputs, inputs)
        return weight.map_at(pack_experts, (size,), np.uint8).reshape(-1)
    outputs, inputs = weight.shape
    groups = padded(outputs, inputs)[0] // GROUP

    def pack_groups(begin: int, end: int) -> Array:
        at = slice(begin * GROUP, min(end * GROUP, outputs))
        stream = pack(weight[at], precision, None if scales is None else scales[at])
        return stream.reshape(end - begin, -1)

    size = packed_bytes(precision, outputs, inputs)
    return LazyArray((groups, size // groups), np.uint8, pack_groups).reshape(-1)


def parameter(g: Graph, weights: Weights, name: str) -> str:
    """Add a float32 vector or a router under its own name, once for all its readers; a scalar as a vector of one."""
    if name in g.initializers:
        return name
    value = weights.lazy(name)
    return g.weight(name, value if value.ndim else value.reshape(1))


def state_norm(g: Graph, weights: Weights, config: ModelConfig, name: str, present: bool = True) -> tuple[str, str]:
    """Add weight and bias of a norm of the hidden state; RMSNorm has no bias, a norm that is not present neither."""
    if not present:
        return "", ""
    bias = parameter(g, weights, f"{name}.bias") if config.norm == "layer" else ""
    return parameter(g, weights, f"{name}.weight"), bias


def bias(g: Graph, weights: Weights, name: str) -> str:
    """Add the bias of a matrix, by the name of its weight; "" where it has none."""
    bias = f"{name.removesuffix('.weight')}.bias"
    return parameter(g, weights, bias) if bias in weights.state else ""


def shaped(g: Graph, weights: Weights, name: str, shape: tuple[int, ...]) -> str:
    """Add a float32 parameter under its own name, in another shape."""
    return g.weight(name, weights.take(name).reshape(shape))


def predictor(g: Graph, weights: Weights, name: str, present: bool) -> tuple[str, str]:
    """Add weight and bias of a predictor with one output; without it, two absent inputs."""
    if not present:
        return "", ""
    return parameter(g, weights, f"{name}.weight"), parameter(g, weights, f"{name}.bias")


def table(g: Graph, name: str, values: Array) -> str:
    """Add a table of integers; equal ones are written once."""
    for other in g.initializers.values():
        if other.raw_data == values.tobytes() and list(other.dims) == list(values.shape):
            return str(other.name)
    return g.weight(name, values)
