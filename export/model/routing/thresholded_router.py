"""The threshold of a routing decision, moved for each token from the level of its layer.

Mirrors `train/model/routing/thresholded_router.py`. N tokens, D width.
"""

import numpy as np

from ....train.model.routing.thresholded_router import EDGE
from ...graph.builder import Graph
from ...graph.weights import Weights

EVERYTHING = 2.0
"""A level of 1 becomes 2 in the graph, to keep everything even where float32 rounds the mass before the last to 1."""


def linear(g: Graph, weights: Weights, name: str, x: str) -> str:
    """Compute w . x + b of a predictor with one output: x (N, D) -> (N, 1), float32 in every precision."""
    products = g.op("Mul", x, weights.parameter(g, f"{name}.weight"))
    return g.op("Add", g.op("ReduceSum", products, g.int64(1), keepdims=1), weights.parameter(g, f"{name}.bias"))


def shifted(g: Graph, level: str, logits: str, reach: float) -> str:
    """Compute sigmoid(logit(level) + reach tanh(logits)), the level kept away from 0 and 1 as in torch: (N, 1)."""
    inside = g.op("Min", g.op("Max", level, g.scalar(np.float32(EDGE))), g.scalar(np.float32(1 - EDGE)))
    odds = g.op("Log", g.op("Div", inside, g.op("Sub", g.scalar(1.0), inside)))
    shift = g.op("Mul", g.op("Tanh", logits), g.scalar(reach), name="shift")
    return g.op("Sigmoid", g.op("Add", odds, shift))


def limit(g: Graph, weights: Weights, name: str, x: str, level: str, reach: float | None) -> str:
    """Return the threshold that masses are compared with, (N, 1).

    It is the level (N, 1), moved for each token by at most `reach` if that is given and the level is not EVERYTHING.
    """
    if reach is None:
        return level
    moved = shifted(g, level, linear(g, weights, f"{name}.per_token", x), reach)
    return g.op("Where", g.op("Greater", level, g.scalar(1.0)), level, moved, name="limit")
