"""Mixers with a recurrent state in one node each. Mirrors `export/model/mixers`.

N tokens, S slots, D width, H heads, W width of a head, C channels of the short convolution, K tokens that it sees.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ...train.model.config.model import ModelConfig
from ..graph.builder import Graph
from ..graph.weights import Weights
from .attention import Attended, policy_of, rotary
from .packed import matrix, number, ours, pack_lazily, parameter, state_norm

SHIFTED = ("r", "w", "k", "v", "a", "g")
"""What a token of RWKV-7 computes from a mix of itself and the token before it, in the order of the operator."""
Own = tuple[list[str], dict[str, Any]]
"""The inputs and attributes that only one mixer has."""


def mixer(g: Graph, weights: Weights, config: ModelConfig, layer: int, x: str, runs: str) -> Attended:
    """Write the mixer of a layer, with the norms around it and the residual after it.

    Args:
        g: The graph.
        weights: The checkpoint.
        config: The model.
        layer: Number of the layer.
        x: (N, D).
        runs: (N, 1) bool, the tokens that run the layer; "" for all.
    """
    op_type, own_of = MIXERS[config.mixer_of(layer)]
    inputs, attributes = own_of(g, weights, config, layer)
    source, states = f"layers.{config.recursion.source_of(layer)}", config.state_shapes(layer)
    h, new_lengths, *_ = ours(
        g, op_type, x, runs, "slots", "lengths",
        *state_norm(g, weights, config, f"{source}.attention_norm", config.has_norms_before),
        *state_norm(g, weights, config, f"{source}.attention_post_norm", config.has_norms_after),
        *(f"past_{name}.{layer}" if name in states else "" for name in ("state", "conv")),
        matrix(g, weights, f"{source}.mixer.o.weight"),
        *inputs,
        outputs=2 + len(states), results=["", "", *(f"present_{name}.{layer}" for name in states)],
        layer=layer, eps=config.norm_eps, num_heads=config.num_heads, head_dim=config.state_head_dim,
        policy=policy_of(config, layer), precision=number(weights.precisions.attention),
        **attributes,
    )  # fmt: skip
    return Attended(h, new_lengths, "", "")


def _retnet(g: Graph, weights: Weights, config: ModelConfig, layer: int) -> Own:
    name, rope = f"layers.{config.recursion.source_of(layer)}.mixer", config.rope_of(layer)
    large = _large(g, weights, name, "q", "k", "v", "gate")
    tables = rotary(g, config, layer)
    inputs = ["positions", *large, parameter(g, weights, f"{name}.decay"), *tables]
    return inputs, {"rotated": rope.rotated(config.state_head_dim) if rope else 0}


def _mamba2(g: Graph, weights: Weights, config: ModelConfig, layer: int) -> Own:
    name, conv = f"layers.{config.recursion.source_of(layer)}.mixer", config.recurrence.conv
    inputs = [
        *_large(g, weights, name, "in"),
        _convolution(g, weights, name, conv),
        parameter(g, weights, f"{name}.conv.bias") if conv > 1 else "",
        parameter(g, weights, f"{name}.dt_bias"),
        _rate(g, weights, name),
        parameter(g, weights, f"{name}.D"),
        parameter(g, weights, f"{name}.norm.weight"),
    ]
    return inputs, {"conv": conv}


def _gated_delta(g: Graph, weights: Weights, config: ModelConfig, layer: int) -> Own:
    name, conv = f"layers.{config.recursion.source_of(layer)}.mixer", config.recurrence.conv
    inputs = [
        *_large(g, weights, name, "q", "k", "v", "gate"),
        _convolution(g, weights, name, conv),
        parameter(g, weights, f"{name}.a_proj.weight"),
        parameter(g, weights, f"{name}.b_proj.weight"),
        parameter(g, weights, f"{name}.dt_bias"),
        _rate(g, weights, name),
        parameter(g, weights, f"{name}.norm.weight"),
    ]
    return inputs, {"conv": conv}


def _rwkv7(g: Graph, weights: Weights, config: ModelConfig, layer: int) -> Own:
    name = f"layers.{config.recursion.source_of(layer)}.mixer"
    rank = weights.state[f"{name}.w1.weight"].shape[0]
    shares = np.stack([weights.take(f"{name}.mu_{part}") for part in SHIFTED])

    def low_rank(part: str) -> list[str]:
        return [_exact(g, weights, f"{name}.{part}{end}.weight") for end in (1, 2)]

    def vector(part: str) -> str:
        return parameter(g, weights, f"{name}.{part}")

    inputs = [
        g.weight(f"{name}.shift", shares),
        *_large(g, weights, name, "r", "k", "v"),
        *low_rank("w"), vector("w0"),
        *low_rank("a"), vector("a0"),
        *low_rank("g"),
        *(vector(part) for part in ("k_k", "k_a", "r_k", "norm.weight", "norm.bias")),
    ]  # fmt: skip
    return inputs, {"rank": rank}


MIXERS: dict[str, tuple[str, Callable[[Graph, Weights, ModelConfig, int], Own]]] = {
    "retnet": ("RetNet", _retnet),
    "mamba2": ("Mamba2", _mamba2),
    "gated_delta": ("GatedDelta", _gated_delta),
    "rwkv7": ("Rwkv7", _rwkv7),
}
"""The operator of each mixer, and the function that adds what only it has."""


def _large(g: Graph, weights: Weights, name: str, *parts: str) -> list[str]:
    """Pack the large matrices in the precision of attention."""
    return [matrix(g, weights, f"{name}.{part}.weight") for part in parts]


def _exact(g: Graph, weights: Weights, name: str) -> str:
    """Pack a small matrix, which stays fp32 in every precision."""
    return g.weight(f"{name}.packed", pack_lazily(weights.lazy(name), "fp32"))


def _convolution(g: Graph, weights: Weights, name: str, conv: int) -> str:
    """Add the weights of a short convolution, (C, K) in the checkpoint, as (K, C); "" where it sees one token."""
    if conv == 1:
        return ""
    return g.weight(f"{name}.conv.by_token", np.ascontiguousarray(weights.take(f"{name}.conv.weight").T))


def _rate(g: Graph, weights: Weights, name: str) -> str:
    """Add the rates by which heads forget, (H,): exp(A_log)."""
    return g.weight(f"{name}.rate", np.exp(weights.take(f"{name}.A_log")))
