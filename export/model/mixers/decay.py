"""The decay of a state over the time that a token chooses, for Mamba-2 and the gated delta rule. n rows, H heads."""

import numpy as np

from ...graph.builder import Graph
from ...graph.weights import Weights
from .elementary import exp, softplus


def time_step(g: Graph, weights: Weights, name: str, x: str) -> str:
    """Compute softplus(x + dt_bias), (n, H)."""
    return softplus(g, g.op("Add", x, weights.parameter(g, f"{name}.dt_bias")))


def decay_over(g: Graph, weights: Weights, name: str, time: str) -> str:
    """Compute exp(-exp(A_log) time), (n, H)."""
    rate = g.weight(f"{name}.A_log.rate", -np.exp(weights.take(f"{name}.A_log")))
    return exp(g, g.op("Mul", time, rate))
