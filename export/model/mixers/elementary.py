"""Exponentials of float32 numbers, computed in float64 and rounded once.

ONNX Runtime computes the last numbers of an array by another formula than those before, which may differ in the last
bit: a token would have other bits alone than in a prompt. Its Softplus adds 1 to e^x before the logarithm in float32,
which leaves only four digits of a time step of 0.001.
"""

import numpy as np

from ...graph.builder import DOUBLE, FLOAT, Graph


def exp(g: Graph, x: str) -> str:
    """Compute e^x."""
    return g.op("Cast", g.op("Exp", g.op("Cast", x, to=DOUBLE)), to=FLOAT)


def softplus(g: Graph, x: str) -> str:
    """Compute log(1 + e^x) = max(x, 0) + log(1 + e^-|x|)."""
    wide = g.op("Cast", x, to=DOUBLE)
    small = g.op("Exp", g.op("Neg", g.op("Abs", wide)))
    rest = g.op("Log", g.op("Add", small, g.scalar(np.float64(1))))
    return g.op("Cast", g.op("Add", g.op("Max", wide, g.scalar(np.float64(0))), rest), to=FLOAT)
