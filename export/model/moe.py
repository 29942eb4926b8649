"""The feed-forward part of a block. N tokens, D width, E experts, F hidden. Mirrors `train/model/moe.py`."""

from ...train.model.moe import input_name
from ...train.model.sections import FFNConfig
from ..graph.builder import Graph
from ..graph.weights import Weights
from .activation import inner
from .experts import run_experts
from .router import ExpertLevels, router


def dense_ffn(g: Graph, weights: Weights, name: str, config: FFNConfig, x: str) -> str:
    """Compute y = (silu(x Wg) * (x Wu)) Wd, or its form without a gate, with biases or another activation."""
    first, last = f"{name}.{input_name(config)}", f"{name}.down"
    hidden = weights.linear(g, x, f"{first}.weight")
    return weights.linear(g, inner(g, config, hidden), f"{last}.weight")


def moe(
    g: Graph, weights: Weights, name: str, config: FFNConfig, x: str, levels: ExpertLevels, residual: str
) -> tuple[str, str]:
    """Compute residual + sum over selected e of g_e E_e(x) + shared(x), (N, D), and selected (N, E) float32.

    Without a residual, "", the sum alone.
    """
    routes = router(g, weights, f"{name}.router", config, x, levels)
    out = run_experts(g, weights, name, config, x, routes, residual)
    if config.shared_expert_dim:
        out = g.op("Add", out, shared_expert(g, weights, name, config, x))
    return out, routes.selected


def shared_expert(g: Graph, weights: Weights, name: str, config: FFNConfig, x: str) -> str:
    """Compute the expert that every token uses, times its gate where it has one: (N, D) -> (N, D)."""
    with g.scope("shared"):
        out = dense_ffn(g, weights, f"{name}.shared", config, x)
        if not config.shared_gate:
            return out
        logit = g.op("Gemm", x, weights.parameter(g, f"{name}.shared_gate.weight"), transB=1, name="gate")
        return g.op("Mul", out, g.op("Sigmoid", logit))
