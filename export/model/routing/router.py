"""The choice of experts. Mirrors `train/model/routing/router.py`.

N tokens, D width, E experts, Z zero-computation experts, C candidates of a token.
"""

from typing import NamedTuple

import numpy as np

from ....train.model.config.sections import FFNConfig
from ....train.model.routing.router import LEAST_MASS
from ...graph.builder import FLOAT, Graph
from ...graph.weights import Weights
from .thresholded_router import limit


class ExpertLevels(NamedTuple):
    """The thresholds of a router."""

    router_top_p: str  # (N, 1) float32
    router_ratio: str = ""  # (N, 1) float32, of a router with `most_experts`


class Routes(NamedTuple):
    """The decisions of a router."""

    selected: str  # (N, E) float32, 1 where selected
    routing_weights: str  # (N, E) float32, or (N, C) in order of rank, 0 where not selected
    candidates: str = ""  # (N, C) int64: experts in order of rank, where a token has few candidates
    all_selected: str = ""  # (N, E + Z) float32; "" without zero-computation experts
    zero_weights: str = ""  # (N, Z) float32, likewise


def router(g: Graph, weights: Weights, name: str, config: FFNConfig, x: str, levels: ExpertLevels) -> Routes:
    """Choose experts for x (N, D); float32 in every precision."""
    candidates = g.int64(config.most_experts or config.num_logits)
    with g.scope("router"):
        bias = [weights.parameter(g, f"{name}.bias")] if config.router_bias else []
        matrix = weights.parameter(g, f"{name}.weight")
        router_logits = g.op("Gemm", x, matrix, *bias, transB=1, name="router_logits")  # (N, E)
        if config.routing == "relu":
            scores = g.op("Relu", router_logits, name="gates")
        elif config.score == "softmax":
            scores = g.op("Softmax", router_logits, axis=-1, name="router_probs")  # (N, E)
        else:
            scores = g.op("Sigmoid", router_logits, name="scores")
        ranking = scores
        if config.selection_bias:
            ranking = g.op("Add", scores, weights.parameter(g, f"{name}.selection_bias"), name="ranking")
        in_order, expert = g.ops("TopK", ranking, candidates, outputs=2, axis=-1)  # ties in order of expert
        ranked = g.op("GatherElements", scores, expert, axis=-1) if config.selection_bias else in_order  # (N, C)
        kept_ranks = g.op("Cast", _kept(g, weights, name, config, x, levels, ranked), to=FLOAT)
        if config.most_experts is not None:
            return _few(g, config, scores, expert, ranked, kept_ranks)
        # `expert` is a permutation, so every element is overwritten: scores only give the shape
        selected = g.op("ScatterElements", scores, expert, kept_ranks, axis=-1, name="selected_experts")
        routing_weights = g.op("Mul", scores, selected)
        if config.renormalize:
            routing_weights = g.op("Div", routing_weights, _total(g, config, routing_weights), name="routing_weights")
        if not config.has_zero_experts:
            return Routes(selected, routing_weights)
        sizes = g.int64(config.num_experts, config.zero_experts.total)
        experts, _ = g.ops("Split", selected, sizes, outputs=2, axis=1)
        routing_weights, zero_weights = g.ops("Split", routing_weights, sizes, outputs=2, axis=1)
    return Routes(experts, routing_weights, all_selected=selected, zero_weights=zero_weights)


def _kept(g: Graph, weights: Weights, name: str, config: FFNConfig, x: str, levels: ExpertLevels, ranked: str) -> str:
    """Return which ranks a token keeps, (N, C) bool."""
    if config.routing == "top_k":
        rank = g.op("Range", g.scalar(0), g.scalar(config.num_logits), g.scalar(1))
        kept_ranks = g.op("Less", rank, g.scalar(int(config.experts_per_token)))
        return g.op("Expand", kept_ranks, g.op("Shape", ranked))
    mass_before = g.op("CumSum", ranked, g.scalar(1), exclusive=1, name="mass_before")
    if config.most_experts is not None or config.score != "softmax" or config.routing == "relu":
        mass = g.op("Max", _sum_in_order(g, ranked), g.scalar(np.float32(LEAST_MASS)))
        mass_before = g.op("Div", mass_before, mass, name="share_before")
    reach = config.per_token_reach if config.per_token else None
    kept = g.op("Less", mass_before, limit(g, weights, name, x, levels.router_top_p, reach))
    if config.routing == "relu":
        return g.op("And", kept, g.op("Greater", ranked, g.scalar(0.0)), name="positive")
    if config.most_experts is None:
        return kept
    first = g.op("Slice", ranked, g.int64(0), g.int64(1), g.int64(1))  # (N, 1)
    short = g.op("Less", ranked, g.op("Mul", first, levels.router_ratio), name="below_ratio")
    if not config.selection_bias:  # scores fall with the rank
        return g.op("And", kept, g.op("Not", short))
    number = g.op("CumSum", g.op("Cast", short, to=FLOAT), g.scalar(1))
    return g.op("And", kept, g.op("Less", number, g.scalar(0.5)))


def _few(g: Graph, config: FFNConfig, scores: str, expert: str, ranked: str, kept_ranks: str) -> Routes:
    """Return the routes of tokens that choose among few candidates, whose weights are (N, C)."""
    nothing = g.op("ConstantOfShape", g.op("Shape", scores))
    selected = g.op("ScatterElements", nothing, expert, kept_ranks, axis=-1, name="selected_experts")
    routing_weights = g.op("Mul", ranked, kept_ranks)
    if config.renormalize:
        total = _sum_in_order(g, routing_weights)
        if config.score != "softmax":
            total = g.op("Max", total, g.scalar(np.float32(LEAST_MASS)))
        routing_weights = g.op("Div", routing_weights, total, name="routing_weights")
    return Routes(selected, routing_weights, expert)


def _sum_in_order(g: Graph, values: str) -> str:
    """Return the sum of each row, (N, C) -> (N, 1), which does not depend on the rows beside it.

    ONNX Runtime's ReduceSum adds up a row by its alignment in memory: a row of 7 in a prompt has other bits than alone.
    """
    running = g.op("CumSum", values, g.scalar(1))
    return g.op("Slice", running, g.int64(-1), g.int64(2**62), g.int64(1))


def _total(g: Graph, config: FFNConfig, routing_weights: str) -> str:
    """Return the mass of the experts kept, (N, 1)."""
    total = g.op("ReduceSum", routing_weights, g.int64(1), keepdims=1)
    return total if config.score == "softmax" else g.op("Max", total, g.scalar(np.float32(LEAST_MASS)))
