"""RWKV-7: a state with one decay per key, corrected by a generalised delta rule. Mirrors `train/model/mixers/rwkv7.py`.

n rows, D width, H heads, W width of a head, R rank of the low-rank matrices.
"""

import math

import numpy as np

from ....train.model.config.model import ModelConfig
from ...graph.builder import Graph
from ...graph.weights import Weights
from .convolution import last_inputs, with_past
from .elementary import exp
from .recurrence import Terms, recurrence
from .steps import Mixed, States, Steps
from .unit import unit

UNIT_EPS = 1e-24
"""Term added to the sum of squares of a removal key; its root is the 1e-12 of torch's normalize."""
NORM_EPS = 64e-5
"""Term added to the variance in the norm of each head."""


def rwkv7(g: Graph, weights: Weights, config: ModelConfig, layer: int, x: str, steps: Steps, past: States) -> Mixed:
    """Compute W_o ((norm(o) + bonus) * g) of normed x (n, D), o the recurrence with a = -kappa and b = a kappa."""
    name = f"layers.{config.recursion.source_of(layer)}.mixer"
    heads, width = config.num_heads, config.state_head_dim
    inputs = with_past(g, x, steps, past.conv, config.dim)  # (1 + s, M, D)
    before = g.op("Slice", inputs, g.int64(0), g.int64(-1), g.int64(0), name="token_shift")
    change = g.op("Sub", g.op("Reshape", before, g.int64(-1, config.dim)), x)  # (n, D)

    def lerp(part: str) -> str:
        """Move x towards the token before: (n, D)."""
        return g.op("Add", x, g.op("Mul", change, weights.parameter(g, f"{name}.mu_{part}")), name=f"lerp_{part}")

    def small(y: str, part: str) -> str:
        """Multiply by a low-rank matrix, which stays float32."""
        return g.op("Gemm", y, weights.parameter(g, f"{name}.{part}.weight"), transB=1, name=part)

    def plus(y: str, part: str) -> str:
        return g.op("Add", y, weights.parameter(g, f"{name}.{part}"))

    def in_heads(y: str, *last: int) -> str:
        return g.op("Reshape", y, g.int64(-1, heads, *last))

    r, k, v = (weights.linear(g, lerp(part), f"{name}.{part}.weight") for part in "rkv")  # (n, H W)
    rate = plus(small(g.op("Tanh", small(lerp("w"), "w1")), "w2"), "w0")
    decay = exp(g, g.op("Mul", g.op("Sigmoid", rate), g.scalar(-math.exp(-0.5))))  # (n, H W)
    a = g.op("Sigmoid", plus(small(small(lerp("a"), "a1"), "a2"), "a0"))
    gate = small(g.op("Sigmoid", small(lerp("g"), "g1")), "g2")

    removal = g.op("Mul", k, weights.parameter(g, f"{name}.k_k"))
    removal = unit(g, in_heads(removal, width), width, UNIT_EPS)  # kappa (n, H, W)
    less = g.op("Sub", a, g.scalar(1.0))
    written = g.op("Add", g.op("Mul", less, weights.parameter(g, f"{name}.k_a")), g.scalar(1.0))
    key = in_heads(g.op("Mul", k, written, name="key"), 1, width)
    read, value = in_heads(r, width, 1), in_heads(v, width, 1)
    terms = Terms(
        w=in_heads(decay, 1, width),
        v=value,
        k=key,
        r=read,
        a=g.op("Unsqueeze", g.op("Neg", removal), g.int64(3)),
        b=g.op("Unsqueeze", g.op("Mul", removal, in_heads(a, width)), g.int64(2)),
    )
    out, state = recurrence(g, terms, steps, past.state, heads, width)
    normed = _norm(g, weights, f"{name}.norm", out, heads, width)
    weight = g.weight(f"{name}.r_k", weights.take(f"{name}.r_k").reshape(heads, 1, width))
    share = g.op("MatMul", g.op("Mul", key, weight), read, name="bonus")  # (n, H, 1, 1)
    bonus = g.op("Squeeze", g.op("Mul", share, value), g.int64(3))  # (n, H, W)
    gated = g.op("Mul", g.op("Reshape", g.op("Add", normed, bonus), g.int64(-1, heads * width)), gate)
    return Mixed(weights.linear(g, gated, f"{name}.o.weight"), States(state, last_inputs(g, inputs, 1)))


def _norm(g: Graph, weights: Weights, name: str, out: str, heads: int, width: int) -> str:
    """Apply LayerNorm to each head, with its own weight and bias: (n, H, W)."""
    ones = g.constant(np.ones(width, np.float32))
    normed = g.op("LayerNormalization", out, ones, axis=-1, epsilon=NORM_EPS, name="norm")
    weight, bias = (
        g.weight(f"{name}.{part}", weights.take(f"{name}.{part}").reshape(heads, width)) for part in ("weight", "bias")
    )
    return g.op("Add", g.op("Mul", normed, weight), bias)
