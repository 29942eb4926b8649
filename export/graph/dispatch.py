"""Zero-row dispatch: each part of a layer (an expert, a head) multiplies only the rows of the tokens that chose it.

A part that no token chose multiplies no row. N tokens, D width, E parts to choose from, R chosen pairs, I inputs and
O outputs of a matrix.
"""

from .builder import INT64, Graph
from .lazy_array import LazyArray
from .weights import Weights, dequantize, integer_matmul, quantize_lazily, quantize_rows


class Dispatch:
    """The (part, token) pairs of `selected` (N, E) float32, sorted by part, and one matrix product per part."""

    def __init__(self, g: Graph, weights: Weights, num_parts: int, selected: str) -> None:
        self.g, self.weights, self.num_parts = g, weights, num_parts
        self.by_part = g.op("Transpose", selected, perm=[1, 0])  # (E, N)
        part, token = g.ops("Split", g.op("NonZero", self.by_part), outputs=2, axis=0, num_outputs=2)  # (1, R) each
        self.token = g.op("Reshape", token, g.int64(-1))  # (R,)
        self.part = g.op("Reshape", part, g.int64(-1))
        self.counts = g.op("Cast", g.op("ReduceSum", selected, g.int64(0), keepdims=0), to=INT64)  # (E,)
        self._places: str | None = None

    def matmul(self, x: str, name: str, weight: LazyArray, gather: bool) -> str:
        """Multiply x by the matrix of each part: x (N, I), or (R, I) without `gather`, weight (E, I, O) -> (R, O)."""
        g, scope = self.g, name.removesuffix(".weight").rsplit(".", 1)[1]
        if not self.weights.in_integers(name):
            rows, precision = self._rows(x, gather), self.weights.precision_of(name)
            matrices = [
                self.weights.floats(g, f"{name}.{e}", weight[e], precision) for e in range(self.num_parts)
            ]  # (I, O) each
            return self._concat([
                g.op("MatMul", rows[e], matrices[e], name=f"{scope}.{e}") for e in range(self.num_parts)
            ])  # fmt: skip
        quantized, column_scale = quantize_lazily(weight)  # (E, I, O), (E, O)
        x, row_scale = quantize_rows(g, x)
        rows = self._rows(x, gather)
        product = self._concat([
            integer_matmul(g, rows[e], g.weight(f"{name}.{e}.int8", quantized[e]), f"{scope}.{e}")
            for e in range(self.num_parts)
        ])  # fmt: skip
        if gather:
            row_scale = g.op("Gather", row_scale, self.token, axis=0)
        return dequantize(g, product, row_scale, g.op("Gather", g.weight(f"{name}.scale", column_scale), self.part))

    def add(self, rows: str, name: str) -> str:
        """Add to each row the bias of its part: rows (R, O), the bias (E, O)."""
        g = self.g
        return g.op("Add", rows, g.op("Gather", self.weights.parameter(g, name), self.part, axis=0))

    def combine(self, out: str, part_weights: str, candidates: str = "", *, spare_row: bool = False) -> str:
        """Add up each token's rows, weighted: out (R, D), part_weights (N, E), 0 where not chosen -> (N, D).

        Where tokens choose among few `candidates` (N, C), part_weights are theirs, (N, C), and nothing is built that
        has a row for every token and part. With `spare_row`, it may be that no token chose any part.

        Each token gathers its rows. ScatterND with reduction "add" would do it in one node, but ONNX Runtime runs it on
        several threads without a lock, so that one of two additions to a token is sometimes lost.
        """
        if spare_row:
            width = self.g.op("Shape", out, start=1)
            zeros = self.g.op("ConstantOfShape", self.g.op("Concat", self.g.int64(1), width, axis=0))
            out = self.g.op("Concat", out, zeros, axis=0, name="spare_row")
        rows = self.spread(out, candidates)  # (N, E or C, D)
        mixed = self.g.op("MatMul", self.g.op("Unsqueeze", part_weights, self.g.int64(1)), rows, name="combine")
        return self.g.op("Squeeze", mixed, self.g.int64(1))  # of (N, 1, D)

    def spread(self, rows: str, candidates: str = "") -> str:
        """Return the rows of each token: (R, O) -> (N, E, O), or (N, C, O). A part not chosen has the first row."""
        if self._places is None:
            g = self.g
            flat = g.op("Reshape", self.by_part, g.int64(-1))
            row = g.op("Mul", g.op("CumSum", flat, g.scalar(0), exclusive=1), flat)
            row = g.op("Reshape", g.op("Cast", row, to=INT64), g.int64(self.num_parts, -1))
            self._places = g.op("Transpose", row, perm=[1, 0])  # (N, E)
        places = self.g.op("GatherElements", self._places, candidates, axis=1) if candidates else self._places
        return self.g.op("Gather", rows, places, axis=0)

    def _rows(self, x: str, gather: bool) -> tuple[str, ...]:
        rows = self.g.op("Gather", x, self.token, axis=0, name="dispatch") if gather else x
        return self.g.ops("Split", rows, self.counts, outputs=self.num_parts, axis=0)

    def _concat(self, parts: list[str]) -> str:
        return self.g.op("Concat", *parts, axis=0)
