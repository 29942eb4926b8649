"""Mamba-2: a state whose decay and input are chosen by the token. Mirrors `train/model/mixers/mamba2.py`.

n rows, D width, H heads, W width of a head, of keys and of values.
"""

from ....train.model.config.model import ModelConfig
from ...graph.builder import Graph
from ...graph.weights import Weights
from ..activation import activate
from .convolution import short_convolution
from .decay import decay_over, time_step
from .recurrence import Terms, recurrence
from .steps import Mixed, States, Steps


def mamba2(g: Graph, weights: Weights, config: ModelConfig, layer: int, x: str, steps: Steps, past: States) -> Mixed:
    """Compute W_o norm((o + D x') * silu(z)) of normed x (n, D), where W_in x = z | x' | B | C | dt.

    The recurrence has w = exp(-dt exp(A_log)), v = dt x', and of all heads together k = B and r = C.
    """
    name = f"layers.{config.recursion.source_of(layer)}.mixer"
    heads, width = config.num_heads, config.state_head_dim
    inner = heads * width
    projected = weights.linear(g, x, f"{name}.in.weight")
    parts = g.int64(inner, inner + 2 * width, heads)
    z, mixed, dt = g.ops("Split", projected, parts, outputs=3, axis=1)
    shape = (inner + 2 * width, config.recurrence.conv)
    mixed, inputs = short_convolution(g, weights, f"{name}.conv", mixed, steps, past.conv, shape)
    value, key, read = g.ops("Split", mixed, g.int64(inner, width, width), outputs=3, axis=1)
    value = g.op("Reshape", value, g.int64(-1, heads, width, 1))
    dt = time_step(g, weights, name, dt)  # (n, H)
    terms = Terms(
        w=g.op("Reshape", decay_over(g, weights, name, dt), g.int64(-1, heads, 1, 1)),
        v=g.op("Mul", value, g.op("Reshape", dt, g.int64(-1, heads, 1, 1))),
        k=g.op("Reshape", key, g.int64(-1, 1, 1, width)),
        r=g.op("Reshape", read, g.int64(-1, 1, width, 1)),
    )
    out, state = recurrence(g, terms, steps, past.state, heads, width)  # (n, H, W)
    skip = g.weight(f"{name}.D", weights.take(f"{name}.D").reshape(heads, 1))
    out = g.op("Add", out, g.op("Mul", g.op("Squeeze", value, g.int64(3)), skip), name="skip")
    gated = g.op("Mul", g.op("Reshape", out, g.int64(-1, inner)), activate(g, "silu", z))
    weight = weights.parameter(g, f"{name}.norm.weight")
    normed = g.op("RMSNormalization", gated, weight, axis=-1, epsilon=config.norm_eps, name="norm")
    return Mixed(weights.linear(g, normed, f"{name}.o.weight"), States(state, inputs))
