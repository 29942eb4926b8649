"""Which layers a token runs. N tokens, D width. Mirrors `train/model/depth.py`."""

from __future__ import annotations

from .graph import Graph
from .weights import Weights


def depth_scores(g: Graph, weights: Weights, name: str, x: str, norm_eps: float) -> str:
    """sigmoid(w . rms(x) + b), float32 in every precision: x (N, D) -> (N, 1)."""
    with g.scope("depth_router"):
        scaled = g.op("RMSNormalization", x, weights.parameter(g, f"{name}.weight"), axis=-1, epsilon=norm_eps)
        logits = g.op("ReduceSum", scaled, g.int64(1), keepdims=1)
        return g.op("Sigmoid", g.op("Add", logits, weights.parameter(g, f"{name}.bias")), name="depth_scores")
