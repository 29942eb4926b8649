"""The activations of the feed-forward part. Mirrors `train/model/activation.py`."""

from ...train.model.config.sections import Activation, FFNConfig
from ..graph.builder import Graph


def activate(g: Graph, name: Activation, x: str) -> str:
    """Compute the activation of x, of any shape."""
    if name == "silu":
        return g.op("Mul", x, g.op("Sigmoid", x))
    if name == "relu":
        return g.op("Relu", x)
    return g.op("Gelu", x, approximate="tanh" if name == "gelu_tanh" else "none")


def inner(g: Graph, config: FFNConfig, hidden: str) -> str:
    """Compute act(gate) * up of gate|up (n, 2F), or act(up) of (n, F): -> (n, F)."""
    if not config.gated:
        return activate(g, config.activation, hidden)
    gate, up = g.ops("Split", hidden, outputs=2, axis=-1, num_outputs=2)
    return g.op("Mul", activate(g, config.activation, gate), up)
