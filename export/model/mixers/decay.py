"""The decay of a state over the time that a token chooses. Mirrors `train/model/mixers/decay.py`. n rows, H heads."""

import numpy as np

from ...graph.builder import Graph
from ...graph.weights import Weights


def time_step(g: Graph, weights: Weights, name: str, x: str) -> str:
    """Compute softplus(x + dt_bias), (n, H)."""
    return g.op("Softplus", g.op("Add", x, weights.parameter(g, f"{name}.dt_bias")), name="time_step")


def decay_over(g: Graph, weights: Weights, name: str, time: str) -> str:
    """Compute exp(-exp(A_log) time), (n, H)."""
    rate = g.weight(f"{name}.A_log.rate", -np.exp(weights.take(f"{name}.A_log")))
    return g.op("Exp", g.op("Mul", time, rate), name="alpha")
