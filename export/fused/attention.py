"""Attention in up to three nodes: head router, windows, attention. Mirrors `export/model/attention/attention.py`.

N tokens, S slots, D width, H query heads, W width of a head, L layers.
"""

from typing import NamedTuple

from ...runtime.ops.layout import pack_positions
from ...train.model.attention.rope import rotary_tables
from ...train.model.attention.window import window_by_length, window_levels
from ...train.model.config.model import ModelConfig
from ..graph.builder import Graph
from ..graph.weights import Weights
from .packed import bias, matrix, number, ours, parameter, predictor, state_norm, table

POLICIES = {"none": 1, "project": 2}
"""The attribute `policy` of a layer that tokens can skip; 0 where every token runs it."""
QK_NORMS = ("none", "head", "full")
HEAD_ROUTINGS = ("top_k", "top_p", "adaptive")


class Attended(NamedTuple):
    """The output of attention and its decisions; "" where there was nothing to decide."""

    h: str  # (N, D)
    new_lengths: str  # (1, S) int64, tokens that the cache of this layer holds after the pass
    selected_heads: str  # (N, H) bool
    windows: str  # (N,) int64, where the tokens of the layer differ


def policy_of(config: ModelConfig, layer: int) -> int:
    """Return the attribute `policy` of a layer."""
    return POLICIES[config.depth.skipped_kv] if config.can_skip(layer) else 0


def attention(g: Graph, weights: Weights, config: ModelConfig, layer: int, x: str, runs: str) -> Attended:
    """Write the attention of a layer, with the norms around it and the residual after it.

    Args:
        g: The graph.
        weights: The checkpoint.
        config: The model.
        layer: Number of the layer.
        x: (N, D).
        runs: (N, 1) bool, the tokens that run the layer; "" for all.
    """
    source = f"layers.{config.recursion.source_of(layer)}"
    name, precision = f"{source}.attention", number(weights.precisions.attention)
    norm = state_norm(g, weights, config, f"{source}.attention_norm", config.has_norms_before)
    selected, head_weights = _head_router(g, weights, config, layer, x, runs, norm)
    windows = _windows(g, weights, config, layer, x, runs, norm)
    positions, rope = config.positions_of(layer), config.rope_of(layer)
    qk_norm = QK_NORMS.index(config.attention.qk_norm)
    cos, sin = rotary(g, config, layer)
    cope = _contextual(g, weights, f"{name}.position_embedding") if positions == "cope" else ""
    parts = ("key", "value", "counted") if config.counts_cells(layer) else ("key", "value")
    past = [f"past_{part}.{layer}" for part in parts]
    h, new_lengths, *_ = ours(
        g, "Attention", x, runs, "positions", "slots", "lengths", windows, head_weights, *norm,
        *state_norm(g, weights, config, f"{source}.attention_post_norm", config.has_norms_after),
        matrix(g, weights, f"{name}.q.weight"),
        matrix(g, weights, f"{name}.kv.weight"),
        matrix(g, weights, f"{name}.o.weight"),
        *(bias(g, weights, f"{name}.{part}.weight") for part in ("q", "kv", "o")),
        *(parameter(g, weights, f"{name}.{part}.weight") if qk_norm else "" for part in ("q_norm", "k_norm")),
        cos, sin, cope, *past, *[""] * (3 - len(past)),
        outputs=2 + len(parts), results=["", "", *(f"present_{part}.{layer}" for part in parts)],
        layer=layer, eps=config.norm_eps, num_heads=config.num_heads, num_kv_heads=config.num_kv_heads,
        head_dim=config.resolved_head_dim, policy=policy_of(config, layer), window=window_of(weights, config, layer),
        precision_q=precision, precision_kv=precision, precision_o=precision,
        contextual_positions=config.attention.max_positions if cope else 0, qk_norm=qk_norm,
        rotated=rope.rotated(config.resolved_head_dim) if rope else 0, softcap=config.attention.softcap,
    )  # fmt: skip
    return Attended(h, new_lengths, selected, windows)


def _contextual(g: Graph, weights: Weights, name: str) -> str:
    """Add the embedding (P, W) of contextual positions, in blocks like those of cached keys."""
    return g.weight(f"{name}.packed", pack_positions(weights.take(name)))


def rotary(g: Graph, config: ModelConfig, layer: int) -> tuple[str, str]:
    """Add the tables of a layer's RoPE, (context_length, R / 2) each, once for all layers that share them."""
    rope = config.rope_of(layer)
    if rope is None:
        return "", ""
    number = config.ropes.index(rope)
    names = [f"rotary.{number}.{part}" if number else f"rotary.{part}" for part in ("cos", "sin")]
    if names[0] not in g.initializers:
        for name, values in zip(names, rotary_tables(config, rope), strict=True):
            g.weight(name, values.numpy())
    return names[0], names[1]


def _head_router(
    g: Graph, weights: Weights, config: ModelConfig, layer: int, x: str, runs: str, norm: tuple[str, str]
) -> tuple[str, str]:
    """Choose heads: (N, H) bool and their weights (N, H) float32, 0 where not chosen."""
    heads, name = config.heads, f"layers.{config.recursion.source_of(layer)}.attention.head_router"
    if heads.routing == "all":
        return "", ""
    shifts = heads.routing != "adaptive" and heads.per_token
    selected, head_weights = ours(
        g, "HeadRouter", x, runs, *norm, "head_top_p" if heads.routing != "top_k" else "",
        parameter(g, weights, f"{name}.weight"),
        parameter(g, weights, f"{name}.balance") if heads.shared_heads else "",
        *predictor(g, weights, f"{name}.per_token", shifts or heads.routing == "adaptive"),
        outputs=2, layer=layer, eps=config.norm_eps, routing=HEAD_ROUTINGS.index(heads.routing),
        shared_heads=heads.shared_heads, heads_per_token=float(config.heads_per_token),
        least_heads=config.least_heads, most_heads=config.most_heads,
        reach=float(heads.per_token_reach) if shifts else 0.0,
    )  # fmt: skip
    return selected, head_weights


def by_token(config: ModelConfig) -> bool:
    """Return whether the tokens of a layer may have different windows."""
    return config.has_windows and config.attention.window_kind in ("length", "learned")


def _windows(
    g: Graph, weights: Weights, config: ModelConfig, layer: int, x: str, runs: str, norm: tuple[str, str]
) -> str:
    """Choose the window of each token, (N,) int64; "" where they have one number."""
    if not config.window_of(layer) or not by_token(config):
        return ""
    name, learned = f"layers.{config.recursion.source_of(layer)}.attention", config.attention.window_kind == "learned"
    values = (window_levels if learned else window_by_length)(config, layer)
    numbers = table(g, f"{name}.window_levels" if learned else f"{name}.window_by_length", values)
    (windows,) = ours(
        g, "Windows", x, runs, "slots", "lengths", *norm,
        *predictor(g, weights, f"{name}.window_router", learned),
        *((numbers, "") if learned else ("", numbers)),
        layer=layer, eps=config.norm_eps, policy=policy_of(config, layer),
    )  # fmt: skip
    return windows


def window_of(weights: Weights, config: ModelConfig, layer: int) -> int:
    """Return the window of a layer, the largest where tokens choose; 0 without one."""
    name = f"layers.{config.recursion.source_of(layer)}.attention.window_controller.window"
    return int(weights.read(name)) if name in weights.state else config.window_of(layer)
