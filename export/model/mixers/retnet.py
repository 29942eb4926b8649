"""RetNet: a state with one fixed decay per head. Mirrors `train/model/mixers/retnet.py`.

n rows, D width, H heads, W width of a head.
"""

from typing import Any

import numpy as np

from ....train.model.config.model import ModelConfig
from ...graph.builder import Graph
from ...graph.weights import Weights
from ..activation import activate
from .recurrence import Terms, recurrence
from .steps import Mixed, States, Steps


def retnet(g: Graph, weights: Weights, config: ModelConfig, layer: int, x: str, steps: Steps, past: States) -> Mixed:
    """Compute W_o (norm(o) * silu(W_g x)) of normed x (n, D), o the recurrence of rotated q and k."""
    name = f"layers.{config.recursion.source_of(layer)}.mixer"
    heads, width = config.num_heads, config.state_head_dim
    q, k, v = (weights.linear(g, x, f"{name}.{part}.weight") for part in "qkv")  # (n, H W)
    k = g.op("Mul", k, g.scalar(width**-0.5))
    q, k = (_rotated(g, config, layer, part, steps) for part in (q, k))
    decay = weights.take(f"{name}.decay").reshape(heads, 1, 1)
    terms = Terms(
        w=g.weight(f"{name}.decay", decay),
        v=g.op("Reshape", v, g.int64(-1, heads, width, 1)),
        k=g.op("Reshape", k, g.int64(-1, heads, 1, width)),
        r=g.op("Reshape", q, g.int64(-1, heads, width, 1)),
        fixed=True,
    )
    out, state = recurrence(g, terms, steps, past.state, heads, width)
    ones = g.constant(np.ones(width, np.float32))
    normed = g.op("RMSNormalization", out, ones, axis=-1, epsilon=config.norm_eps, name="norm")
    gate = activate(g, "silu", weights.linear(g, x, f"{name}.gate.weight"))
    gated = g.op("Mul", g.op("Reshape", normed, g.int64(-1, heads * width)), gate)
    return Mixed(weights.linear(g, gated, f"{name}.o.weight"), States(state))


def _rotated(g: Graph, config: ModelConfig, layer: int, x: str, steps: Steps) -> str:
    """Rotate the heads of x (n, H W) by the positions of their tokens, where the layer has rotary positions."""
    rope = config.rope_of(layer)
    if rope is None or steps.rotary is None:
        return x
    share: dict[str, Any] = {"rotary_embedding_dim": rope.rotated(config.state_head_dim)} if rope.share < 1 else {}
    rows, positions = (g.op("Unsqueeze", value, g.int64(1)) for value in (x, steps.positions))  # (n, 1, H W), (n, 1)
    return g.op("RotaryEmbedding", rows, *steps.rotary, positions, num_heads=config.num_heads, **share)
