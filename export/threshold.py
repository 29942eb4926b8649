"""What a token's threshold is of its layer's level. N tokens, D width. Mirrors `train/model/threshold.py`."""

from __future__ import annotations

from .graph import Graph
from .weights import Weights

EVERYTHING = 2.0
"""A level of 1 keeps everything, also where float32 rounds the mass before the last to 1: in the graph it becomes 2."""


def linear(g: Graph, weights: Weights, name: str, x: str) -> str:
    """w . x + b of a predictor with one output, float32 in every precision: x (N, D) -> (N, 1)."""
    products = g.op("Mul", x, weights.parameter(g, f"{name}.weight"))
    return g.op("Add", g.op("ReduceSum", products, g.int64(1), keepdims=1), weights.parameter(g, f"{name}.bias"))


def token_factor(g: Graph, logits: str, least: float) -> str:
    """u = least + (1 - least) sigmoid(logits): (N, 1) -> (N, 1)."""
    share = g.op("Mul", g.op("Sigmoid", logits), g.scalar(1 - least))
    return g.op("Add", share, g.scalar(least), name="factor")


def limit(g: Graph, weights: Weights, name: str, x: str, level: str, least: float | None) -> str:
    """What masses are compared with: the level (N, 1), times a token's factor where one is predicted (`least` is the
    end of its range) unless the level is EVERYTHING."""
    if least is None:
        return level
    factor = token_factor(g, linear(g, weights, f"{name}.per_token", x), least)
    return g.op("Where", g.op("Greater", level, g.scalar(1.0)), level, g.op("Mul", level, factor), name="limit")
