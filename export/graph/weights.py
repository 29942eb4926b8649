"""The weights of a checkpoint, each given to the graph once. N rows, I inputs, O outputs.

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

FP32 = Precisions.of("fp32")
ZERO_POINT = np.uint8(128)
Part = Literal["experts", "attention", "embedding", "head"]


def part_of(name: str) -> Part:
    """Return the part of the model that a matrix of the checkpoint belongs to."""
    if name == "embedding.weight":
        return "embedding"
    if name == "head.weight":
        return "head"
    return "attention" if ".attention." in name else "experts"


def is_matrix(name: str, dimensions: int) -> bool:
    """Return whether a parameter of the checkpoint is a matrix whose precision can be chosen.

    Routers, gates of shared experts, positions and biases stay float32.
    """
    kept = "router" in name or "shared_gate" in name or name.endswith(("positions", "position_embedding", "bias"))
    return dimensions > 1 and not kept


class Weights:
    """Arrays by name, with a record of those taken, so that none is left out of the graph or written twice."""

    def __init__(
        self, state: dict[str, Array], precisions: Precisions = FP32, scales: Mapping[str, Array] | None = None
    ) -> None:
        self.state = {name: np.asarray(value, np.float32) for name, value in state.items()}
        self.precisions = precisions
        self.scales = scales or {}
        """Factors of the scales of blocks, by matrix, as `layout.quantize` takes them; others are 1."""
        self.taken: set[str] = set()

    def take(self, name: str) -> Array:
        """Return an array as float32; each can be taken once."""
        if name in self.taken:
            raise AssertionError(f"weight {name} is taken twice")
        self.taken.add(name)
        return self.state[name]

    def read(self, name: str) -> Array:
        """Return an array as float32; it may be read again."""
        self.taken.add(name)
        return self.state[name]

    def untaken(self) -> set[str]:
        """Return the names of the arrays that were not taken."""
        return set(self.state) - self.taken

    def parameter(self, g: Graph, name: str) -> str:
        """Add a weight that stays fp32 in every precision, as those of norms and routers do."""
        return g.weight(name, self.take(name))

    def precision_of(self, name: str) -> Precision:
        """Return the precision of a matrix."""
        precision: Precision = getattr(self.precisions, part_of(name))
        return precision

    def in_integers(self, name: str) -> bool:
        """Return whether the portable graph multiplies by a matrix in int8."""
        return self.precision_of(name) in ("int8", "int4")

    def matrix(self, name: str) -> Array:
        """Take a matrix (O, I), or experts (E, I, O), rounded to int4 where that is its precision."""
        weight = self.take(name)
        if self.precision_of(name) != "int4":
            return weight
        if weight.ndim == 2:
            return rounded(weight, "int4", self.scales.get(name))
        return rounded(weight.swapaxes(1, 2), "int4", self.scales.get(name)).swapaxes(1, 2)

    def floats(self, g: Graph, name: str, value: Array, precision: Precision) -> str:
        """Add a matrix in fp32, bf16 or fp16 and return it as float32."""
        stored = self.stored(g, name, value, precision)
        return stored if precision == "fp32" else g.op("Cast", stored, to=FLOAT, name="widen")

    def stored(self, g: Graph, name: str, value: Array, precision: Precision) -> str:
        """Add a matrix as it is stored in fp32, bf16 or fp16."""
        if precision == "bf16":
            return g.weight(f"{name}.bf16", to_bfloat16(value), BFLOAT16)
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
        quantized, scale = quantize_columns(weight.T)
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
