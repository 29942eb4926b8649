"""The short causal convolution of each channel over the last tokens that ran the layer.

Mirrors `train/model/mixers/convolution.py`. n rows, M sequences with rows, s steps of a sequence, C channels, J tokens
that the convolution sees.
"""

from ...graph.builder import Graph
from ...graph.weights import Weights
from ..activation import activate
from .steps import Steps


def with_past(g: Graph, x: str, steps: Steps, past: str, channels: int) -> str:
    """Put the inputs x (n, C) behind those that the sequences end with, past (M, C, J - 1): -> (J - 1 + s, M, C)."""
    grid = g.op("Concat", g.int64(-1), steps.number, g.int64(channels), axis=0)
    return g.op("Concat", g.op("Transpose", past, perm=[2, 0, 1]), g.op("Reshape", x, grid), axis=0, name="inputs")


def last_inputs(g: Graph, inputs: str, number: int) -> str:
    """Return the last inputs, which the sequences end with now: (J - 1 + s, M, C) -> (M, C, number)."""
    last = g.op("Slice", inputs, g.int64(-number), g.int64(2**62), g.int64(0))
    return g.op("Transpose", last, perm=[1, 2, 0], name="last_inputs")


def short_convolution(
    g: Graph, weights: Weights, name: str, x: str, steps: Steps, past: str, shape: tuple[int, int]
) -> tuple[str, str]:
    """Compute silu(conv(x)) of each channel.

    Args:
        g: The graph.
        weights: They have `name.weight` (C, J), the current token last, and perhaps `name.bias` (C,).
        name: Name of the convolution.
        x: (n, C).
        steps: How the rows continue their sequences.
        past: (M, C, J - 1), the last inputs before; "" where J is 1.
        shape: (C, J).

    Returns:
        The result (n, C), and the last inputs (M, C, J - 1), "" where J is 1.
    """
    channels, seen = shape
    after = ""
    if seen > 1:
        taps = weights.take(f"{name}.weight").T  # (J, C)
        inputs = with_past(g, x, steps, past, channels)
        after = last_inputs(g, inputs, seen - 1)
        out = ""
        for tap in range(seen):  # one sum after the other, so that a step has the same bits alone and in a prompt
            end = tap + 1 - seen or 2**62
            met = g.op("Slice", inputs, g.int64(tap), g.int64(end), g.int64(0))  # (s, M, C)
            product = g.op("Mul", met, g.weight(f"{name}.weight.{tap}", taps[tap]))
            out = g.op("Add", out, product) if out else product
        x = g.op("Reshape", out, g.int64(-1, channels))
    bias = f"{name}.bias"
    if bias in weights.state:
        x = g.op("Add", x, weights.parameter(g, bias), name="bias")
    return activate(g, "silu", x), after
