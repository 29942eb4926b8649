"""The experts, each on the tokens that chose it (see `export/graph/dispatch.py`).

Mirrors `train/model/experts/experts.py`.

N tokens, D width, E experts, F hidden, R chosen pairs.
"""

from ....train.model.config.sections import FFNConfig
from ....train.model.experts.moe import input_name
from ...graph.builder import Graph
from ...graph.dispatch import Dispatch
from ...graph.weights import Weights
from ..activation import inner
from ..routing.router import Routes


def run_experts(g: Graph, weights: Weights, name: str, config: FFNConfig, x: str, routes: Routes, residual: str) -> str:
    """Compute residual_n + sum over the chosen e of g_ne (silu(x_n Wg_e) * (x_n Wu_e)) Wd_e.

    x and residual (N, D) -> (N, D). Without a residual, "", the sum alone.
    """
    dispatch = Dispatch(g, weights, config.num_experts, routes.selected)
    first, down = f"{name}.{input_name(config)}", f"{name}.down"  # (E, D, H), (E, F, D); H is 2F, or F without a gate
    hidden = dispatch.matmul(x, first, weights.matrix(first), gather=True)  # (R, H)
    if config.bias:
        hidden = dispatch.add(hidden, f"{first}_bias")
    out = dispatch.matmul(inner(g, config, hidden), down, weights.matrix(down), gather=False)  # (R, D)
    if config.bias:
        out = dispatch.add(out, f"{down}_bias")
    spare = config.least_experts == 0
    mixed = dispatch.combine(out, routes.routing_weights, routes.candidates, spare_row=spare)
    return g.op("Add", residual, mixed) if residual else mixed
