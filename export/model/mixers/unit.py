"""Vectors of a fixed length. W width of a head."""

import numpy as np

from ...graph.builder import Graph


def unit(g: Graph, x: str, width: int, eps: float, length: float = 1.0) -> str:
    """Compute length x / sqrt(sum(x^2) + eps) over the last axis of x (..., W).

    RMSNorm computes it, with another weight and eps: unlike ReduceSum it adds up a row by the same steps wherever the
    row is in memory, so that a token has the same bits alone and in a prompt.
    """
    weight = g.constant(np.full(width, length * width**-0.5, np.float32))
    return g.op("RMSNormalization", x, weight, axis=-1, epsilon=eps / width, name="unit")
