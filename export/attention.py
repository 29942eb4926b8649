"""Grouped-query attention over a cache that is written in place. Mirrors `train/model/attention.py`.

B batch, T time, n rows (tokens of this layer), S cells a sequence, D width, H query heads, K key/value heads, W width
of a head, C capacity of the cache.
"""

from __future__ import annotations

from typing import NamedTuple

from ..train.model.config import ModelConfig
from .graph import Graph
from .weights import Weights


class Cells(NamedTuple):
    """How the n rows of a layer lie in the (B, S) grid that attention works on.

    In a prompt (B = 1) the rows stand side by side, S = n; in a batch of single tokens each sequence has one cell,
    S = 1, and one that skips the layer leaves its cell empty.
    """

    row_cells: str | None  # (n, 1) int64: the cell of each row; None where row i is cell i
    num_cells: str | None  # (1,) int64: B * S
    positions: str  # (B, S) int64
    seen: str  # (B, 1, S, C) bool: which places of the cache a cell may look at; under int8 with a spare row


class Cache(NamedTuple):
    """Keys and values of one layer, each (B, K, C, W); what is not yet written is never seen."""

    key: str
    value: str


class Attention:
    """The operators of one layer's attention; `shapes` of the root: (B, -1, H, W) and (B, -1, 2K, W)."""

    def __init__(
        self, weights: Weights, name: str, config: ModelConfig, rotary: tuple[str, str], shapes: tuple[str, str]
    ) -> None:
        self.weights, self.name, self.config = weights, name, config
        self.rotary, self.shapes = rotary, shapes

    def write(self, g: Graph, x: str, cells: Cells, past: Cache, lengths: str, present: Cache) -> Cache:
        """x (n, D): its keys and values go to the places from `lengths` (B,) on -> the cache, named `present`.

        It lies in the memory of `past` where the caller binds both to one buffer.
        """
        kv = self._to_heads(
            g, self.weights.linear(g, x, f"{self.name}.kv.weight"), self.shapes[1], 2 * self.config.num_kv_heads, cells
        )
        key, value = g.ops("Split", kv, outputs=2, axis=1, num_outputs=2)  # (B, K, S, W)
        key = self._rotated(g, key, "k_norm", cells)
        return Cache(
            g.op("TensorScatter", past.key, key, lengths, axis=2, name="write_key", result=present.key),
            g.op("TensorScatter", past.value, value, lengths, axis=2, name="write_value", result=present.value),
        )

    def attend(self, g: Graph, x: str, cells: Cells, present: Cache) -> str:
        """x (n, D) -> (n, D)."""
        width = self.config.num_heads * self.config.width_of_head
        q = self._to_heads(
            g, self.weights.linear(g, x, f"{self.name}.q.weight"), self.shapes[0], self.config.num_heads, cells
        )
        q = self._rotated(g, q, "q_norm", cells)
        mixed = self._mix(g, q, present, cells.seen)
        mixed = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.int64(-1, width))
        if cells.row_cells is not None:
            mixed = g.op("Gather", mixed, g.op("Reshape", cells.row_cells, g.int64(-1)), axis=0)  # (n, H*W)
        return self.weights.linear(g, mixed, f"{self.name}.o.weight")

    def _mix(self, g: Graph, q: str, present: Cache, seen: str) -> str:
        """softmax(q k^T / sqrt(W)) v: q (B, H, S, W) -> (B, H, S, W).

        Under int8 with a spare row of queries, thrown away: ONNX Runtime multiplies a single row by another kernel than
        two or more, which rounds the last bit otherwise, and the next quantisation makes a whole step of that bit. With
        two rows at least, a token alone is computed bit for bit as in a prompt.
        """
        if self.weights.precision == "fp32":
            return g.op("Attention", q, present.key, present.value, seen)
        q = g.op("Pad", q, g.int64(0, 1), "", g.int64(2), name="spare_row")  # (B, H, S + 1, W)
        mixed = g.op("Attention", q, present.key, present.value, seen)
        return g.op("Slice", mixed, g.int64(0), g.int64(-1), g.int64(2))

    def _to_heads(self, g: Graph, x: str, shape: str, heads: int, cells: Cells) -> str:
        """x (n, heads * W) -> (B, heads, S, W); empty cells hold zeros."""
        if cells.row_cells is not None:
            assert cells.num_cells is not None
            size = g.op("Concat", cells.num_cells, g.int64(heads * self.config.width_of_head), axis=0)
            x = g.op("ScatterND", g.op("ConstantOfShape", size), cells.row_cells, x)
        return g.op("Transpose", g.op("Reshape", x, shape), perm=[0, 2, 1, 3])

    def _rotated(self, g: Graph, heads: str, norm: str, cells: Cells) -> str:
        weight = self.weights.parameter(g, f"{self.name}.{norm}.weight")
        heads = g.op("RMSNormalization", heads, weight, axis=-1, epsilon=self.config.norm_eps, name=norm)
        return g.op("RotaryEmbedding", heads, *self.rotary, cells.positions)
