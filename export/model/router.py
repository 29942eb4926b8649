"""The choice of experts. N tokens, D width, E experts. Mirrors `train/model/router.py`."""

from typing import NamedTuple

from ...train.model.sections import FFNConfig
from ..graph.builder import FLOAT, Graph
from ..graph.weights import Weights
from .thresholded_router import limit


class Routes(NamedTuple):
    """The decisions of a router."""

    selected: str  # (N, E) float32, 1 where selected
    routing_weights: str  # (N, E) float32, 0 where not selected


def router(g: Graph, weights: Weights, name: str, config: FFNConfig, x: str, router_top_p: str) -> Routes:
    """Choose experts for x (N, D) at router_top_p (N, 1); float32 in every precision."""
    experts = g.int64(config.num_experts)
    with g.scope("router"):
        router_logits = g.op("Gemm", x, weights.parameter(g, f"{name}.weight"), transB=1, name="router_logits")
        router_probs = g.op("Softmax", router_logits, axis=-1, name="router_probs")  # (N, E)
        ranked, expert = g.ops("TopK", router_probs, experts, outputs=2, axis=-1)  # (N, E); ties in order of expert
        if config.routing == "top_k":
            rank = g.op("Range", g.scalar(0), g.scalar(config.num_experts), g.scalar(1))
            kept_ranks = g.op("Less", rank, g.scalar(int(config.experts_per_token)))
            kept_ranks = g.op("Expand", kept_ranks, g.op("Shape", ranked))
        else:
            mass_before = g.op("CumSum", ranked, g.scalar(1), exclusive=1, name="mass_before")  # (N, E)
            reach = config.per_token_reach if config.per_token else None
            kept_ranks = g.op("Less", mass_before, limit(g, weights, name, x, router_top_p, reach))
        kept_ranks = g.op("Cast", kept_ranks, to=FLOAT)
        # `expert` is a permutation, so every element is overwritten: router_probs only gives the shape
        selected = g.op("ScatterElements", router_probs, expert, kept_ranks, axis=-1, name="selected_experts")
        routing_weights = g.op("Mul", router_probs, selected)
        if config.renormalize:
            total = g.op("ReduceSum", routing_weights, g.int64(1), keepdims=1)
            routing_weights = g.op("Div", routing_weights, total, name="routing_weights")
    return Routes(selected, routing_weights)
