"""The weights of a checkpoint, each given to the graph once. N rows, I inputs, O outputs.

Matrices are lazy: they are read, rounded and quantised when the file of the weights is written, a piece at a time.

In the portable graph bf16 and fp16 weights are widened to float32 when ONNX Runtime loads it, which takes the speed and
the memory of fp32. int4 weights are rounded to int4 and stored as int8: standard operators that take four bits compute
a token 12 times slower (DequantizeLinear), or need 4.4 times the memory of fp32 while loading (docs/decisions/0026).
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from ...runtime.format.manifest import Precision, Precisions
from ...runtime.ops.layout import rounded, to_bfloat16
from .builder import BFLOAT16, FLOAT, Array, Graph
from .lazy_array import LazyArray, steps

FP32 = Precisions.of("fp32")
ZERO_POINT = np.uint8(128)
MIXER_MATRICES = tuple(f".mixer.{part}.weight" for part in ("q", "k", "v", "r", "gate", "in", "o"))
"""Ends of the names of the large projections of recurrent mixers."""
Part = Literal["experts", "attention", "embedding", "head"]


def part_of(name: str) -> Part:
    """Return the part of the model that a matrix of the checkpoint belongs to."""
    if name == "embedding.weight":
        return "embedding"
    if name == "head.weight":
        return "head"
    return "attention" if ".attention." in name or ".mixer." in name else "experts"


def is_matrix(name: str, dimensions: int) -> bool:
    """Return whether a parameter of the checkpoint is a matrix whose precision can be chosen.

    Routers, gates of shared experts, zero-computation experts, positions and biases stay float32, and of a recurrent
    mixer everything but its large projections.
    """
    if ".mixer." in name:
        return name.endswith(MIXER_MATRICES)
    kept = any(word in name for word in ("router", "shared_gate", "zero_experts"))
    kept = kept or name.endswith(("positions", "position_embedding", "bias"))
    return dimensions > 1 and not kept


class Weights:
    """Arrays by name, with a record of those taken, so that none is left out of the graph or written twice."""

    def __init__(
        self,
        state: Mapping[str, Array | LazyArray],
        precisions: Precisions = FP32,
        scales: Mapping[str, Array] | None = None,
    ) -> None:
        self.state = {name: _lazy(value) for name, value in state.items()}
        self.precisions = precisions
        self.scales = scales or {}
        """Factors of the scales of blocks, by matrix, as `layout.quantize` takes them; others are 1."""
        self.taken: set[str] = set()
        self.shared: tuple[str, ...] = ()
        """How the names of arrays begin that several layers take; see `share`."""

    def share(self, g: Graph, prefixes: tuple[str, ...]) -> None:
        """Let arrays whose names begin so be taken again; the root graph `g` holds what is made of them once."""
        self.shared = g.shared = prefixes

    def lazy(self, name: str) -> LazyArray:
        """Return an array that is float32 when it is read; each can be taken once, a shared one again."""
        if name in self.taken and not name.startswith(self.shared):
            raise AssertionError(f"weight {name} is taken twice")
        self.taken.add(name)
        return self.state[name]

    def take(self, name: str) -> Array:
        """Return a small array as float32; each can be taken once."""
        return np.asarray(self.lazy(name))

    def read(self, name: str) -> Array:
        """Return a small array as float32; it may be read again."""
        self.taken.add(name)
        return np.asarray(self.state[name])

    def untaken(self) -> set[str]:
        """Return the names of the arrays that were not taken."""
        return set(self.state) - self.taken

    def parameter(self, g: Graph, name: str) -> str:
        """Add a weight that stays fp32 in every precision, as those of norms and routers do."""
        return g.weight(name, self.lazy(name))

    def precision_of(self, name: str) -> Precision:
        """Return the precision of a matrix."""
        precision: Precision = getattr(self.precisions, part_of(name))
        return precision

    def in_integers(self, name: str) -> bool:
        """Return whether the portable graph multiplies by a matrix in int8."""
        return self.precision_of(name) in ("int8", "int4")

    def matrix(self, name: str) -> LazyArray:
        """Take a matrix (O, I), or experts (E, I, O), rounded to int4 where that is its precision."""
        weight = self.lazy(name)
        if self.precision_of(name) != "int4":
            return weight
        scales = self.scales.get(name)
        if weight.ndim == 2:
            return weight.map_at(lambda rows, at: rounded(rows, "int4", None if scales is None else scales[at]))

        def round_experts(experts: Array, at: slice) -> Array:
            return rounded(experts.swapaxes(1, 2), "int4", None if scales is None else scales[at]).swapaxes(1, 2)

        return weight.map_at(round_experts)

    def floats(self, g: Graph, name: str, value: LazyArray, precision: Precision) -> str:
        """Add a matrix in fp32, bf16 or fp16 and return it as float32."""
        stored = self.stored(g, name, value, precision)
        return stored if precision == "fp32" else g.op("Cast", stored, to=FLOAT, name="widen")

    def stored(self, g: Graph, name: str, value: LazyArray, precision: Precision) -> str:
        """Add a matrix as it is stored in fp32, bf16 or fp16."""
        if precision == "bf16":
            return g.weight(f"{name}.bf16", value.map(to_bfloat16, dtype=np.uint16), BFLOAT16)
        if precision == "fp16":
            return g.weight(f"{name}.fp16", value.astype(np.float16))
        return g.weight(name, value)

    def bias(self, g: Graph, name: str) -> str:
        """Add the bias of a linear layer, by the name of its weight; "" where it has none."""
        bias = f"{name.removesuffix('.weight')}.bias"
        return self.parameter(g, bias) if bias in self.state else ""

    def linear(self, g: Graph, x: str, name: str) -> str:
        """Multiply x by a weight and add the bias, if any: x (N, I) @ weight (O, I)^T + bias (O,) -> (N, O)."""
        scope = name.rsplit(".", 2)[-2]
        weight, bias = self.matrix(name), self.bias(g, name)
        if not self.in_integers(name):
            stored = self.floats(g, name, weight, self.precision_of(name))
            return g.op("Gemm", x, stored, *([bias] if bias else []), name=scope, transB=1)
        quantized, scale = quantize_lazily(weight.T)
        rows, row_scale = quantize_rows(g, x)
        product = integer_matmul(g, rows, g.weight(f"{name}.int8", quantized), scope)
        return plus(g, dequantize(g, product, row_scale, g.weight(f"{name}.scale", scale)), bias)


def plus(g: Graph, x: str, bias: str) -> str:
    """Add a bias to x; "" for none."""
    return g.op("Add", x, bias, name="bias") if bias else x


def quantize_columns(weight: Array) -> tuple[Array, Array]:
    """Quantise (..., I, O) to int8, symmetric and to nearest, with one scale per output, (..., O) float32."""
    scale = np.maximum(np.abs(weight).max(-2) / 127, np.finfo(np.float32).tiny).astype(np.float32)
    return np.rint(weight / scale[..., None, :]).astype(np.int8), scale


def quantize_lazily(weight: LazyArray) -> tuple[LazyArray, LazyArray]:
    """Quantise (I, O) or (E, I, O) as `quantize_columns` does, when it is read: outputs or experts a few at a time.

    The scales of what has been quantised are remembered: the file of the weights holds them after the codes.
    """
    flat = weight.ndim == 2
    by_output = weight.T if flat else weight  # (O, I) or (E, I, O)
    scales = np.empty(by_output.shape[:1] if flat else (by_output.shape[0], by_output.shape[2]), np.float32)
    known = np.zeros(len(scales), np.bool_)

    def codes(begin: int, end: int) -> Array:
        part = by_output.rows(begin, end)
        quantized, scales[begin:end] = quantize_columns(part.T if flat else part)
        known[begin:end] = True
        return quantized.T if flat else quantized

    def scale(begin: int, end: int) -> Array:
        for at in steps(by_output.shape, np.float32):
            if begin < at.stop and at.start < end and not known[at].all():
                codes(at.start, at.stop)
        return scales[begin:end]

    quantized = LazyArray(by_output.shape, np.int8, codes)
    return quantized.T if flat else quantized, LazyArray(scales.shape, np.float32, scale)


def _lazy(value: Array | LazyArray) -> LazyArray:
    if isinstance(value, LazyArray):
        return value
    return LazyArray.of(value, lambda stored: np.asarray(stored, np.float32))


def quantize_rows(g: Graph, x: str) -> tuple[str, str]:
    """Quantise x (N, I) to uint8 around 128 with one scale per row (N, 1), once for every reader of x in this graph.

    One scale for the whole tensor (DynamicQuantizeLinear) would make a token's result depend on its neighbours. uint8
    rather than int8, because ONNX Runtime's MatMulInteger has a fast kernel only for an unsigned left side.
    """
    if ("quantize_rows", x) not in g.derived:
        with g.scope("quantize"):
            largest = g.op("ReduceMax", g.op("Abs", x), g.int64(1), keepdims=1)
            scale = g.op("Max", g.op("Mul", largest, g.scalar(1 / 127)), g.scalar(1e-30))
            rows = g.op("QuantizeLinear", g.op("Div", x, scale), g.scalar(1.0), g.scalar(ZERO_POINT))
        g.derived["quantize_rows", x] = (rows, scale)
    rows, scale = g.derived["quantize_rows", x]
    return rows, scale


def integer_matmul(g: Graph, rows: str, weight: str, name: str) -> str:
    """Multiply uint8 (N, I) around 128 @ int8 (I, O) -> int32 (N, O)."""
    return g.op("MatMulInteger", rows, weight, g.scalar(ZERO_POINT), name=name)


def dequantize(g: Graph, product: str, row_scale: str, column_scale: str) -> str:
    """Scale int32 (N, O) by row (N, 1) and by column (O,) or (N, O) -> float32 (N, O)."""
    floats = g.op("Cast", product, to=1, name="dequantize")
    return g.op("Mul", g.op("Mul", floats, column_scale), row_scale)
