"""Weights that are multiplied in fp16. N rows, I inputs, O outputs.

The residual stream, norms, routers and everything that decides stay float32: a product takes its input rounded to fp16
and gives its result back as float32.
"""

from onnx import TensorProto

from ..graph.builder import FLOAT, Graph
from ..graph.weights import Weights, plus

FLOAT16 = TensorProto.FLOAT16


class HalfWeights(Weights):
    """Weights whose parts in fp16 are multiplied in fp16; those of other precisions as in the portable graph."""

    def in_half(self, name: str) -> bool:
        """Return whether a matrix is multiplied in fp16."""
        return self.precision_of(name) == "fp16"

    def linear(self, g: Graph, x: str, name: str) -> str:
        """Multiply x by a weight and add the bias, if any: x (N, I) @ weight (O, I)^T + bias (O,) -> (N, O) float32."""
        if not self.in_half(name):
            return super().linear(g, x, name)
        stored = self.stored(g, name, self.matrix(name), "fp16")
        return plus(g, product(g, x, stored, name.rsplit(".", 2)[-2]), self.bias(g, name))


def product(g: Graph, x: str, matrix: str, name: str) -> str:
    """Multiply float32 x (N, I) by an fp16 matrix (O, I) -> (N, O) float32."""
    return wide(g, g.op("Gemm", half(g, x), matrix, name=name, transB=1))


def half(g: Graph, x: str) -> str:
    """Round x to fp16, once for every reader of x in this graph."""
    if ("half", x) not in g.derived:
        g.derived["half", x] = (g.op("Cast", x, to=FLOAT16, name="half"),)
    return g.derived["half", x][0]


def wide(g: Graph, x: str) -> str:
    """Widen x to float32."""
    return g.op("Cast", x, to=FLOAT, name="wide")
