"""The experts by zero-row dispatch: each multiplies the rows of the tokens that chose it, and an expert that nobody
chose multiplies none. Mirrors `train/model/experts.py`. N tokens, D width, E experts, F hidden, R chosen pairs.
"""

from __future__ import annotations

from .graph import INT64, Graph
from .router import Routes
from .weights import Weights, dequantize, integer_matmul, quantize_columns, quantize_rows


def run_experts(g: Graph, weights: Weights, name: str, num_experts: int, x: str, routes: Routes, residual: str) -> str:
    """residual_n + sum over the chosen e of g_ne (silu(x_n Wg_e) * (x_n Wu_e)) Wd_e: x, residual (N, D) -> (N, D)."""
    by_expert = g.op("Transpose", routes.selected, perm=[1, 0])  # (E, N)
    expert, token = g.ops("Split", g.op("NonZero", by_expert), outputs=2, axis=0, num_outputs=2)  # (1, R), by expert
    token = g.op("Reshape", token, g.int64(-1))  # (R,)
    expert = g.op("Reshape", expert, g.int64(-1))
    counts = g.op("Cast", g.op("ReduceSum", routes.selected, g.int64(0), keepdims=0), to=INT64)  # (E,)
    dispatch = _Dispatch(g, weights, num_experts, token, expert, counts)

    hidden = dispatch.matmul(x, f"{name}.gate_up", gather=True)  # (R, 2F)
    gate, up = g.ops("Split", hidden, outputs=2, axis=-1, num_outputs=2)
    inner = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)  # (R, F)
    out = dispatch.matmul(inner, f"{name}.down", gather=False)  # (R, D)
    return _combine(g, out, by_expert, routes.routing_weights, num_experts, residual)


def _combine(g: Graph, out: str, by_expert: str, routing_weights: str, num_experts: int, residual: str) -> str:
    """residual_n + sum over e of g_ne out[row of (e, n)]: out (R, D), by_expert (E, N) -> (N, D).

    Each token gathers its rows. ScatterND with reduction "add" would do it in one node, but ONNX Runtime runs it on
    several threads without a lock, and two rows of one token now and then lose one of the two additions.
    """
    flat = g.op("Reshape", by_expert, g.int64(-1))
    row = g.op("Mul", g.op("CumSum", flat, g.scalar(0), exclusive=1), flat)  # row 0, times weight 0, where not chosen
    row = g.op("Reshape", g.op("Cast", row, to=INT64), g.int64(num_experts, -1))
    rows = g.op("Gather", out, g.op("Transpose", row, perm=[1, 0]), axis=0)  # (N, E, D)
    mixed = g.op("MatMul", g.op("Unsqueeze", routing_weights, g.int64(1)), rows, name="combine")  # (N, 1, D)
    return g.op("Add", residual, g.op("Squeeze", mixed, g.int64(1)))


class _Dispatch:
    """One matrix product per expert over the rows sorted by expert."""

    def __init__(self, g: Graph, weights: Weights, num_experts: int, token: str, expert: str, counts: str) -> None:
        self.g, self.weights, self.num_experts = g, weights, num_experts
        self.token, self.expert, self.counts = token, expert, counts

    def matmul(self, x: str, name: str, gather: bool) -> str:
        """x (N, I) or, where rows are not to be gathered, (R, I), times weight (E, I, O) -> (R, O)."""
        g, weight = self.g, self.weights.take(name)
        if self.weights.precision == "fp32":
            rows = self._rows(x, gather)
            return self._concat([
                g.op("MatMul", rows[e], g.weight(f"{name}.{e}", weight[e]), name=f"{name.rsplit('.', 1)[1]}.{e}")
                for e in range(self.num_experts)
            ])  # fmt: skip
        quantized, column_scale = quantize_columns(weight)  # (E, I, O), (E, O)
        x, row_scale = quantize_rows(g, x)
        rows = self._rows(x, gather)
        product = self._concat([
            integer_matmul(g, rows[e], g.weight(f"{name}.{e}.int8", quantized[e]), f"{name.rsplit('.', 1)[1]}.{e}")
            for e in range(self.num_experts)
        ])  # fmt: skip
        if gather:
            row_scale = g.op("Gather", row_scale, self.token, axis=0)
        return dequantize(g, product, row_scale, g.op("Gather", g.weight(f"{name}.scale", column_scale), self.expert))

    def _rows(self, x: str, gather: bool) -> tuple[str, ...]:
        rows = self.g.op("Gather", x, self.token, axis=0, name="dispatch") if gather else x
        return self.g.ops("Split", rows, self.counts, outputs=self.num_experts, axis=0)

    def _concat(self, parts: list[str]) -> str:
        return self.g.op("Concat", *parts, axis=0)
