"""The feed-forward part of a block. Mirrors `train/model/experts/moe.py`.

N tokens, D width, E experts, Z zero-computation experts, F hidden.
"""

from ....train.model.config.sections import FFNConfig
from ....train.model.experts.moe import input_name
from ...graph.builder import Graph
from ...graph.weights import Weights
from ..activation import inner
from ..routing.router import ExpertLevels, Routes, router
from .experts import run_experts
from .zero_experts import zero_experts


def dense_ffn(g: Graph, weights: Weights, name: str, config: FFNConfig, x: str) -> str:
    """Compute y = (silu(x Wg) * (x Wu)) Wd, or its form without a gate, with biases or another activation."""
    first, last = f"{name}.{input_name(config)}", f"{name}.down"
    hidden = weights.linear(g, x, f"{first}.weight")
    return weights.linear(g, inner(g, config, hidden), f"{last}.weight")


def moe(
    g: Graph, weights: Weights, name: str, config: FFNConfig, x: str, levels: ExpertLevels, residual: str
) -> tuple[str, str]:
    """Compute residual + sum over selected e of g_e E_e(x) + shared(x), (N, D), and selected (N, E + Z) float32.

    Without a residual, "", the sum alone.
    """
    routes = router(g, weights, f"{name}.router", config, x, levels)
    out = run_experts(g, weights, name, config, x, routes, residual)
    return add_others(g, weights, name, config, x, routes, out), routes.all_selected or routes.selected


def add_others(g: Graph, weights: Weights, name: str, config: FFNConfig, x: str, routes: Routes, out: str) -> str:
    """Add zero-computation experts and the shared expert, where there are any, to out (N, D)."""
    if config.has_zero_experts:
        with g.scope("zero_experts"):
            part = f"{name}.zero_experts"
            update = zero_experts(g, weights, part, config.zero_experts, x, routes.zero_weights)
            out = g.op("Add", out, update) if update else out
    if config.shared_expert_dim:
        with g.scope("shared"):
            out = g.op("Add", out, shared_expert(g, weights, name, config, x))
    return out


def shared_expert(g: Graph, weights: Weights, name: str, config: FFNConfig, x: str) -> str:
    """Compute the expert that every token uses, times its gate where it has one: (N, D) -> (N, D)."""
    out = dense_ffn(g, weights, f"{name}.shared", config, x)
    if not config.shared_gate:
        return out
    logit = g.op("Gemm", x, weights.parameter(g, f"{name}.shared_gate.weight"), transB=1, name="gate")
    return g.op("Mul", out, g.op("Sigmoid", logit))
