"""Attention with contextual positions, by standard operators. Mirrors `train/model/attention/cope.py`.

B batch, H query heads, K key/value heads, S cells a sequence, W width of a head, C capacity, P positions. Scores are
computed here and not by the Attention operator with a bias, which would multiply queries and keys a second time and
was slower at every size measured (docs/decisions/0011).
"""

from typing import NamedTuple

import numpy as np

from ....train.model.config.model import ModelConfig
from ...graph.builder import DOUBLE, FLOAT, INT32, Graph
from ...graph.weights import Weights


class Order(NamedTuple):
    """Which cells count for a token's positions, and their order."""

    counts: str  # (B, 1, S, C) bool: seen, and run by its token
    behind: str | None  # (B, 1, 1, C) bool, in a ring: cells that hold older tokens than cell 0


def attend_by_context(
    g: Graph, weights: Weights, name: str, config: ModelConfig, q: str, key: str, value: str, seen: str, order: Order
) -> str:
    """Compute softmax(s + contextual bias) v with s = q k^T / sqrt(W), or c tanh(s / c) of it: -> (B, H, S, W).

    q (B, H, S, W), key and value (B, K, C, W), seen (B, 1, S, C) bool. The query heads of a group are rows of one
    product with their keys.
    """
    heads, groups = g.int64(0, config.num_heads, -1, 0), g.int64(0, config.num_kv_heads, -1, 0)  # 0: as it is
    scaled = g.op("Mul", q, g.scalar(config.resolved_head_dim**-0.5))
    keys = g.op("Transpose", key, perm=[0, 1, 3, 2])  # ONNX Runtime fuses it into the product
    scores = g.op("MatMul", g.op("Reshape", scaled, groups), keys, name="scores")  # (B, K, H/K*S, C)
    scores = g.op("Reshape", scores, heads)  # (B, H, S, C)
    if softcap := config.attention.softcap:
        share = g.op("Tanh", g.op("Mul", scores, g.scalar(1 / softcap)))
        scores = g.op("Mul", share, g.scalar(softcap), name="softcap")
    scores = g.op("Add", scores, contextual_bias(g, weights, name, q, scores, order))
    shares = g.op("Softmax", g.op("Where", seen, scores, g.scalar(-np.inf)), axis=-1, name="shares")
    mixed = g.op("MatMul", g.op("Reshape", shares, groups), value, name="mixed")  # (B, K, H/K*S, W)
    return g.op("Reshape", mixed, heads)


def contextual_bias(g: Graph, weights: Weights, name: str, q: str, scores: str, order: Order) -> str:
    """Compute q . e[p], p_ij = min(sum over k = j..i of sigmoid(s_ik), P - 1), interpolated between whole positions.

    q (B, H, S, W), scores (B, H, S, C) -> (B, H, S, C). One index serves both neighbours: bias = z[n] + (p - n) dz[n],
    n = floor(p), z = q . e, dz = q . (e[n + 1] - e[n]).
    """
    with g.scope("cope"):
        embedding = weights.take(f"{name}.position_embedding")  # (P, W)
        steps = np.concatenate([embedding[1:] - embedding[:-1], np.zeros_like(embedding[:1])])
        table = g.weight(f"{name}.position_embedding", embedding)
        logits = g.op("MatMul", q, g.op("Transpose", table, perm=[1, 0]), name="position_logits")  # (B, H, S, P)
        slopes = g.op("MatMul", q, g.weight(f"{name}.position_embedding.steps", steps.T), name="position_steps")
        positions = _sums(g, g.op("Sigmoid", scores, name="gates"), order)
        positions = g.op("Min", positions, g.scalar(float(len(embedding) - 1)), name="positions")  # (B, H, S, C)
        below = g.op("Floor", positions)
        index = g.op("Cast", below, to=INT32)
        slope = g.op("Mul", g.op("Sub", positions, below), g.op("GatherElements", slopes, index, axis=3))
        return g.op("Add", g.op("GatherElements", logits, index, axis=3), slope)


def _sums(g: Graph, gates: str, order: Order) -> str:
    """Sum for each cell the gates that count from there to the newest token: (B, H, S, C) -> (B, H, S, C).

    In a ring the cells behind the seam come before cell 0, so they are the left half of a row of 2 C. The order is that
    of the places, whatever the cells, so a sum is the same to the last bit wherever the ring has turned.
    """
    zero = g.scalar(0.0)
    if order.behind is None:
        return _sum_from_the_right(g, g.op("Where", order.counts, gates, zero))
    older = g.op("And", order.counts, order.behind)
    newer = g.op("Xor", order.counts, older)
    halves = g.op("Concat", g.op("Where", older, gates, zero), g.op("Where", newer, gates, zero), axis=3)
    left, right = g.ops("Split", _sum_from_the_right(g, halves), outputs=2, axis=3, num_outputs=2)
    return g.op("Where", order.behind, left, right)


def _sum_from_the_right(g: Graph, gates: str) -> str:
    """Sum from the right in float64, as torch does on a CPU; in float32 the logits had 1.4 times torch's error."""
    sums = g.op("CumSum", g.op("Cast", gates, to=DOUBLE), g.scalar(3), reverse=1)
    return g.op("Cast", sums, to=FLOAT)
