"""The weights of a checkpoint, each given to the graph once, in fp32 or int8. N rows, I inputs, O outputs."""

from typing import Literal

import numpy as np

from .builder import Array, Graph

Precision = Literal["fp32", "int8"]
ZERO_POINT = np.uint8(128)


class Weights:
    """Arrays by name, with a record of those taken, so that none is left out of the graph or written twice."""

    def __init__(self, state: dict[str, Array], precision: Precision) -> None:
        self.state = {name: np.asarray(value, np.float32) for name, value in state.items()}
        self.precision = precision
        self.taken: set[str] = set()

    def take(self, name: str) -> Array:
        """Return an array as float32; each can be taken once."""
        if name in self.taken:
            raise AssertionError(f"weight {name} is taken twice")
        self.taken.add(name)
        return self.state[name]

    def untaken(self) -> set[str]:
        """Return the names of the arrays that were not taken."""
        return set(self.state) - self.taken

    def parameter(self, g: Graph, name: str) -> str:
        """Add a weight that stays fp32 in every precision, as those of norms and routers do."""
        return g.weight(name, self.take(name))

    def linear(self, g: Graph, x: str, name: str) -> str:
        """Multiply x by a weight: x (N, I) @ weight (O, I)^T -> (N, O)."""
        scope = name.rsplit(".", 2)[-2]
        if self.precision == "fp32":
            return g.op("Gemm", x, g.weight(name, self.take(name)), name=scope, transB=1)
        quantized, scale = quantize_columns(self.take(name).T)
        rows, row_scale = quantize_rows(g, x)
        product = integer_matmul(g, rows, g.weight(f"{name}.int8", quantized), scope)
        return dequantize(g, product, row_scale, g.weight(f"{name}.scale", scale))


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
