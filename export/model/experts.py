"""The experts, each on the tokens that chose it (see `export/graph/dispatch.py`). Mirrors `train/model/experts.py`.

N tokens, D width, E experts, F hidden, R chosen pairs.
"""

from ..graph.builder import Graph
from ..graph.dispatch import Dispatch
from ..graph.weights import Weights
from .router import Routes


def run_experts(g: Graph, weights: Weights, name: str, num_experts: int, x: str, routes: Routes, residual: str) -> str:
    """Compute residual_n + sum over the chosen e of g_ne (silu(x_n Wg_e) * (x_n Wu_e)) Wd_e.

    x and residual (N, D) -> (N, D). Without a residual, "", the sum alone.
    """
    dispatch = Dispatch(g, weights, num_experts, routes.selected)
    gate_up, down = f"{name}.gate_up", f"{name}.down"  # (E, D, 2F), (E, F, D)
    hidden = dispatch.matmul(x, gate_up, weights.matrix(gate_up), gather=True)  # (R, 2F)
    gate, up = g.ops("Split", hidden, outputs=2, axis=-1, num_outputs=2)
    inner = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)  # (R, F)
    out = dispatch.matmul(inner, down, weights.matrix(down), gather=False)  # (R, D)
    mixed = dispatch.combine(out, routes.routing_weights)
    return g.op("Add", residual, mixed) if residual else mixed
