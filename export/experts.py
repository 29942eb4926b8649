"""The experts by zero-row dispatch: each multiplies only the rows of the tokens that chose it, and an expert that nobody
chose multiplies none. Mirrors `train/model/experts.py`. N tokens, D width, E experts, F hidden, R chosen pairs.
"""

from __future__ import annotations

from .graph import BOOL, INT64, Graph
from .router import Routes
from .weights import Weights, dequantize, integer_matmul, quantize_columns, quantize_rows


def run_experts(g: Graph, weights: Weights, name: str, num_experts: int, x: str, routes: Routes, residual: str) -> str:
    """residual_n + sum over the chosen e of g_ne (silu(x_n Wg_e) * (x_n Wu_e)) Wd_e: x, residual (N, D) -> (N, D)."""
    by_expert = g.op("Transpose", routes.selected, perm=[1, 0])  # (E, N)
    expert, token = g.ops("Split", g.op("NonZero", by_expert), outputs=2, axis=0, num_outputs=2)  # (1, R), by expert
    token = g.op("Reshape", token, g.int64(-1))  # (R,)
    expert = g.op("Reshape", expert, g.int64(-1))
    chosen = g.op("Reshape", g.op("Cast", by_expert, to=BOOL), g.int64(-1))
    scale = g.op("Compress", g.op("Transpose", routes.routing_weights, perm=[1, 0]), chosen)  # (R,)
    counts = g.op("Cast", g.op("ReduceSum", routes.selected, g.int64(0), keepdims=0), to=INT64)  # (E,)
    dispatch = _Dispatch(g, weights, num_experts, token, expert, counts)

    hidden = dispatch.matmul(x, f"{name}.gate_up", gather=True)  # (R, 2F)
    gate, up = g.ops("Split", hidden, outputs=2, axis=-1, num_outputs=2)
    inner = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)  # (R, F)
    out = dispatch.matmul(inner, f"{name}.down", gather=False)  # (R, D)
    out = g.op("Mul", out, g.op("Unsqueeze", scale, g.int64(1)))
    return g.op("ScatterND", residual, g.op("Unsqueeze", token, g.int64(1)), out, reduction="add", name="combine")


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
