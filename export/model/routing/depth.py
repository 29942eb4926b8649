"""The choice of the layers that a token runs. N tokens, D width. Mirrors `train/model/routing/depth.py`."""

from typing import NamedTuple

from ....train.model.config.model import ModelConfig
from ...graph.builder import Graph
from ...graph.weights import Weights
from .thresholded_router import shifted


class DepthRoutes(NamedTuple):
    """The decisions of a depth router."""

    scores: str  # (N, 1) float32
    passes: str  # (N, 1) bool: the score reaches the token's threshold


def depth_router(
    g: Graph, weights: Weights, name: str, config: ModelConfig, x: str, depth_threshold: str
) -> DepthRoutes:
    """Let a token run the layer when sigmoid(w . rms(x) + b) >= depth_threshold; float32 in every precision.

    x (N, D), depth_threshold (N, 1).
    """
    with g.scope("depth_router"):
        scores = g.op("Sigmoid", _logits(g, weights, name, config, x), name="depth_scores")
        if config.depth.per_token:
            logits = _logits(g, weights, f"{name}.per_token", config, x)
            moved = shifted(g, depth_threshold, logits, config.depth.per_token_reach)
            everything = g.op("LessOrEqual", depth_threshold, g.scalar(0.0))
            depth_threshold = g.op("Where", everything, depth_threshold, moved, name="limit")
    return DepthRoutes(scores, g.op("GreaterOrEqual", scores, depth_threshold, name="passes"))


def _logits(g: Graph, weights: Weights, name: str, config: ModelConfig, x: str) -> str:
    """Compute w . rms(x) + b: (N, D) -> (N, 1)."""
    weight = weights.parameter(g, f"{name}.weight")
    scaled = g.op("RMSNormalization", x, weight, axis=-1, epsilon=config.norm_eps)
    return g.op("Add", g.op("ReduceSum", scaled, g.int64(1), keepdims=1), weights.parameter(g, f"{name}.bias"))
