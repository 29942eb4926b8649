"""The feed-forward part of a block. N tokens, D width, E experts, F hidden. Mirrors `train/model/moe.py`."""

from ...train.model.sections import FFNConfig
from ..graph.builder import Graph
from ..graph.weights import Weights
from .experts import run_experts
from .router import router


def dense_ffn(g: Graph, weights: Weights, name: str, x: str) -> str:
    """Compute y = (silu(x Wg) * (x Wu)) Wd: (N, D) -> (N, D)."""
    gate, up = g.ops("Split", weights.linear(g, x, f"{name}.gate_up.weight"), outputs=2, axis=-1, num_outputs=2)
    inner = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
    return weights.linear(g, inner, f"{name}.down.weight")


def moe(
    g: Graph, weights: Weights, name: str, config: FFNConfig, x: str, router_top_p: str, residual: str
) -> tuple[str, str]:
    """Compute residual + sum over selected e of g_e E_e(x) + shared(x), (N, D), and selected (N, E) float32.

    Without a residual, "", the sum alone.
    """
    routes = router(g, weights, f"{name}.router", config, x, router_top_p)
    out = run_experts(g, weights, name, config.num_experts, x, routes, residual)
    if config.shared_expert_dim:
        with g.scope("shared"):
            out = g.op("Add", out, dense_ffn(g, weights, f"{name}.shared", x))
    return out, routes.selected
