"""Gated DeltaNet: a state that is corrected by the delta rule. Mirrors `train/model/mixers/gated_delta.py`.

n rows, D width, H heads, W width of a head.
"""

from ....train.model.config.model import ModelConfig
from ...graph.builder import Graph
from ...graph.weights import Weights
from ..activation import activate
from .convolution import short_convolution
from .decay import decay_over, time_step
from .recurrence import Terms, recurrence
from .steps import Mixed, States, Steps
from .unit import unit

EPS = 1e-6
"""Term added to the sum of squares of a query or key."""


def gated_delta(
    g: Graph, weights: Weights, config: ModelConfig, layer: int, x: str, steps: Steps, past: States
) -> Mixed:
    """Compute W_o (norm(o) * silu(W_g x)) of normed x (n, D), o the recurrence.

    With alpha the decay and beta the rate of a head: w = alpha, a = -alpha beta k, b = k, v = beta v, k = k, r = q.
    """
    name = f"layers.{config.recursion.source_of(layer)}.mixer"
    heads, width = config.num_heads, config.state_head_dim
    inner = heads * width
    qkv = g.op("Concat", *(weights.linear(g, x, f"{name}.{part}.weight") for part in "qkv"), axis=1)
    shape = (3 * inner, config.recurrence.conv)
    qkv, inputs = short_convolution(g, weights, f"{name}.conv", qkv, steps, past.conv, shape)
    q, k, v = g.ops("Split", qkv, outputs=3, axis=1, num_outputs=3)  # (n, H W)
    q, k = (g.op("Reshape", part, g.int64(-1, heads, width)) for part in (q, k))
    q, k = unit(g, q, width, EPS, width**-0.5), unit(g, k, width, EPS)
    v = g.op("Reshape", v, g.int64(-1, heads, width, 1))
    dt = g.op("Gemm", x, weights.parameter(g, f"{name}.a_proj.weight"), transB=1, name="dt")
    alpha = decay_over(g, weights, name, time_step(g, weights, name, dt))
    alpha = g.op("Reshape", alpha, g.int64(-1, heads, 1, 1))
    beta = g.op("Gemm", x, weights.parameter(g, f"{name}.b_proj.weight"), transB=1, name="beta")
    beta = g.op("Reshape", g.op("Sigmoid", beta), g.int64(-1, heads, 1, 1))
    key = g.op("Unsqueeze", k, g.int64(2))  # (n, H, 1, W)
    correction = g.op("Neg", g.op("Mul", alpha, beta))
    terms = Terms(
        w=alpha,
        v=g.op("Mul", v, beta),
        k=key,
        r=g.op("Unsqueeze", q, g.int64(3)),
        a=g.op("Mul", g.op("Unsqueeze", k, g.int64(3)), correction),
        b=key,
    )
    out, state = recurrence(g, terms, steps, past.state, heads, width)
    weight = weights.parameter(g, f"{name}.norm.weight")
    normed = g.op("RMSNormalization", out, weight, axis=-1, epsilon=config.norm_eps, name="norm")
    gate = activate(g, "silu", weights.linear(g, x, f"{name}.gate.weight"))
    gated = g.op("Mul", g.op("Reshape", normed, g.int64(-1, inner)), gate)
    return Mixed(weights.linear(g, gated, f"{name}.o.weight"), States(state, inputs))
