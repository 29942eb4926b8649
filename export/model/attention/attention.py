"""Grouped-query attention over a cache that is written in place. Mirrors `train/model/attention/attention.py`.

B batch, T time, n rows (tokens of this layer), S cells a sequence, D width, H query heads, K key/value heads, W width
of a head, C capacity of the cache.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from ....train.model.config.model import ModelConfig
from ...graph.builder import FLOAT, INT64_ZERO, Graph
from ...graph.weights import Weights
from ..signature import CACHE_TYPES
from .cope import Order, attend_by_context
from .heads import Execution, HeadRoutes, Slices, head_router
from .window import Ring, behind_the_seam, learned_windows, ring_of, seen_in_ring


class Cells(NamedTuple):
    """The (B, S) grid that attention works on, and where the n rows of a layer are in it.

    In a prompt (B = 1) the rows are side by side, S = n. In a batch of single tokens each sequence has one cell, S = 1;
    a sequence that skips the layer leaves its cell empty.
    """

    row_cells: str | None  # (n, 1) int64: the cell of each row; None where row i is cell i
    num_cells: str | None  # (1,) int64: B * S
    positions: str  # (B, S) int64
    places: str  # (B, S) int64: how many tokens this layer held before this one
    seen: str  # (B, 1, S, C) bool: which places of the cache a cell may look at; under int8 with a spare row


class Cache(NamedTuple):
    """Keys and values of one layer, each (B, K, C, W); cells not yet written are never seen.

    `counted` (B, 1, C, 1) float32 is 1 where the token ran the layer; only in layers that need it.
    """

    key: str
    value: str
    counted: str = ""


@dataclass(frozen=True)
class Shared:
    """Inputs that the attention of every layer reads, computed once in the root graph."""

    rotary: list[tuple[str, str] | None]
    """cos and sin of each layer with rotary positions."""
    shapes: tuple[str, str]
    """(B, -1, H, W) and (B, -1, 2K, W) as int64 vectors."""
    windows: list[int | str | None]
    """The windows of each layer; see `window.Tables`."""
    reach: list[str | None]
    """The tokens that each layer sees by place; see `window.Tables`."""
    heads: Execution
    """The execution of routed heads: `masked` or `sliced`."""


class Attended(NamedTuple):
    """The output of attention and its decisions."""

    out: str  # (n, D)
    choices: list[str]  # (n, H) float32 where heads are routed, (n, 1) float32 where each token has its own window


class Attention:
    """The operators of one layer's attention."""

    def __init__(self, weights: Weights, config: ModelConfig, layer: int, shared: Shared) -> None:
        self.weights, self.config, self.layer, self.shared = weights, config, layer, shared
        self.name = f"layers.{config.recursion.source_of(layer)}.attention"
        self.positions = config.positions_of(layer)
        self.mode = "circular" if config.window_of(layer) else "linear"
        self.cache_type = CACHE_TYPES["fp32"]
        """Element type of keys and values in the cache."""

    def write(self, g: Graph, x: str, cells: Cells, past: Cache, lengths: str, present: Cache) -> Cache:
        """Write keys and values of normed x (n, D) from place `lengths` (B,) on; return the cache, named `present`.

        It is written in place where the caller binds `past` and `present` to one buffer.
        """
        kv = self.weights.linear(g, x, f"{self.name}.kv.weight")  # (n, 2 K W)
        if self.config.attention.qk_norm == "full":
            keys, values = g.ops("Split", kv, outputs=2, axis=1, num_outputs=2)
            kv = g.op("Concat", self._norm(g, keys, "k_norm"), values, axis=1)
        kv = self._to_heads(g, kv, self.shared.shapes[1], 2 * self.config.num_kv_heads, cells)
        key, value = g.ops("Split", kv, outputs=2, axis=1, num_outputs=2)  # (B, K, S, W)
        key = self._positioned(g, key, "k_norm", cells)
        return Cache(
            self._scatter(g, past.key, key, lengths, "write_key", present.key),
            self._scatter(g, past.value, value, lengths, "write_value", present.value),
        )

    def count(self, g: Graph, runs: str, grid: str, past: Cache, lengths: str, present: Cache) -> str:
        """Write which tokens run the layer, runs (N, 1) bool; return `counted` of the cache."""
        counted = g.op("Reshape", g.op("Cast", runs, to=FLOAT), grid)  # (B, 1, T, 1)
        return self._scatter(g, past.counted, counted, lengths, "write_counted", present.counted)

    def attend(self, g: Graph, x: str, cells: Cells, present: Cache, head_top_p: str) -> Attended:
        """Attend from normed x (n, D)."""
        config, routes, slices, choices = self.config, None, None, []
        if config.heads.routing != "all":
            routes = head_router(g, self.weights, f"{self.name}.head_router", config, x, head_top_p)
            choices.append(routes.selected)
            if self.shared.heads == "sliced":
                slices = Slices(g, self.weights, self.name, config, routes)
        if slices:
            q = slices.queries(x)  # (n, H, W)
            if cells.row_cells is not None:
                q = g.op("Reshape", q, g.int64(-1, config.num_heads * config.resolved_head_dim))
        else:
            q = self.weights.linear(g, x, f"{self.name}.q.weight")
            if config.attention.qk_norm == "full":
                q = self._norm(g, q, "q_norm")
        q = self._to_heads(g, q, self.shared.shapes[0], config.num_heads, cells)
        q = self._positioned(g, q, "q_norm", cells)
        ring, seen = None, cells.seen
        if config.window_of(self.layer):
            ring = ring_of(g, present.key)
            seen, windows = self._look_back(g, x, cells, ring)
            choices += windows
        mixed = g.op("Transpose", self._mix(g, q, present, seen, ring, cells), perm=[0, 2, 1, 3])  # (B, S, H, W)
        return Attended(self._project(g, mixed, cells, routes, slices), choices)

    def _project(self, g: Graph, mixed: str, cells: Cells, routes: HeadRoutes | None, slices: Slices | None) -> str:
        """Weight the heads' outputs where they are routed, and multiply by o: (B, S, H, W) -> (n, D)."""
        heads, head_dim = self.config.num_heads, self.config.resolved_head_dim
        mixed = g.op("Reshape", mixed, g.int64(-1, heads, head_dim) if routes else g.int64(-1, heads * head_dim))
        if cells.row_cells is not None:
            mixed = g.op("Gather", mixed, g.op("Reshape", cells.row_cells, g.int64(-1)), axis=0)
        if slices:
            return slices.outputs(mixed)
        if routes:
            mixed = g.op("Mul", mixed, g.op("Unsqueeze", routes.weights, g.int64(2)), name="weigh_heads")
            mixed = g.op("Reshape", mixed, g.int64(-1, heads * head_dim))
        return self.weights.linear(g, mixed, f"{self.name}.o.weight")

    def _mix(self, g: Graph, q: str, present: Cache, seen: str, ring: Ring | None, cells: Cells) -> str:
        """Compute softmax(q k^T / sqrt(W) + position) v: q (B, H, S, W) -> (B, H, S, W).

        int8 anywhere adds a spare row of queries and drops it afterwards. ONNX Runtime multiplies a single row by
        another kernel than two or more, which rounds the last bit differently, and the next quantisation may turn that
        bit into a whole step. With at least two rows, a single token is computed bit for bit as in a prompt.
        """
        spare = needs_spare_row(self.weights)
        if spare:
            q = g.op("Pad", q, g.int64(0, 1), "", g.int64(2), name="spare_row")  # (B, H, S + 1, W)
        if self.positions == "cope":
            order = Order(self._counts(g, present, seen), behind_the_seam(g, ring, cells.places) if ring else None)
            mixed = attend_by_context(
                g, self.weights, self.name, self.config, q, present.key, present.value, seen, order
            )
        else:
            mixed = g.op("Attention", q, present.key, present.value, seen, **self._cap())
        return g.op("Slice", mixed, g.int64(0), g.int64(-1), g.int64(2)) if spare else mixed

    def _cap(self) -> dict[str, Any]:
        """Return the limit of the scores as an attribute; none where there is no limit."""
        softcap = self.config.attention.softcap
        return {"softcap": softcap} if softcap else {}

    def _counts(self, g: Graph, present: Cache, seen: str) -> str:
        """Return which of the seen cells count for positions: those whose token ran this layer."""
        if not present.counted:
            return seen
        counted = g.op("Reshape", g.op("Greater", present.counted, g.scalar(0.0)), g.int64(0, 1, 1, -1))
        return g.op("And", seen, counted, name="counts")

    def _look_back(self, g: Graph, x: str, cells: Cells, ring: Ring) -> tuple[str, list[str]]:
        """Return which cells of the ring each token sees, and (n, 1) float32 its window where tokens differ."""
        table, windows = self.shared.reach[self.layer], self.shared.windows[self.layer]
        reported = []
        if table is not None:
            reach = self._by_place(g, table, cells)
            if isinstance(windows, str):
                sizes = self._by_place(g, windows, cells)
                reported.append(g.op("Cast", self._to_rows(g, sizes, cells), to=FLOAT))
        else:
            sizes = learned_windows(g, self.weights, self.name, self.config, self.layer, x)
            reported.append(g.op("Cast", sizes, to=FLOAT))
            so_far = g.op("Add", cells.places, g.scalar(1))
            reach = g.op("Min", self._to_grid(g, sizes, cells), so_far)
        seen = seen_in_ring(g, ring, cells.places, reach)
        return spare_row(g, self.weights, seen), reported

    def _by_place(self, g: Graph, table: str, cells: Cells) -> str:
        """Look up a table (context_length,) by the place of each cell, (B, S), once for all layers in this graph."""
        if (table, cells.places) not in g.derived:
            g.derived[table, cells.places] = (g.op("Gather", table, cells.places),)
        return g.derived[table, cells.places][0]

    def _to_rows(self, g: Graph, grid: str, cells: Cells) -> str:
        """Take the rows out of the grid: (B, S) -> (n, 1)."""
        rows = g.op("Reshape", grid, g.int64(-1, 1))
        if cells.row_cells is None:
            return rows
        return g.op("Gather", rows, g.op("Reshape", cells.row_cells, g.int64(-1)), axis=0)

    def _to_grid(self, g: Graph, rows: str, cells: Cells) -> str:
        """Put the rows into the grid: (n, 1) int64 -> (B, S); empty cells hold 0."""
        if cells.row_cells is not None:
            assert cells.num_cells is not None
            empty = g.op("ConstantOfShape", cells.num_cells, value=INT64_ZERO)
            rows = g.op("ScatterND", empty, cells.row_cells, g.op("Reshape", rows, g.int64(-1)))
        return g.op("Reshape", rows, g.op("Shape", cells.places))

    def _to_heads(self, g: Graph, x: str, shape: str, heads: int, cells: Cells) -> str:
        """Split x into heads: (n, heads * W) or (n, heads, W) -> (B, heads, S, W); empty cells hold zeros."""
        if cells.row_cells is not None:
            assert cells.num_cells is not None
            size = g.op("Concat", cells.num_cells, g.int64(heads * self.config.resolved_head_dim), axis=0)
            x = g.op("ScatterND", g.op("ConstantOfShape", size), cells.row_cells, x)
        return g.op("Transpose", g.op("Reshape", x, shape), perm=[0, 2, 1, 3])

    def _positioned(self, g: Graph, heads: str, norm: str, cells: Cells) -> str:
        """Normalise heads where each is normed by itself, and under RoPE rotate them by position."""
        if self.config.attention.qk_norm == "head":
            heads = self._norm(g, heads, norm)
        tables, rope = self.shared.rotary[self.layer], self.config.rope_of(self.layer)
        if tables is None or rope is None:
            return heads
        rotated = rope.rotated(self.config.resolved_head_dim)
        share: dict[str, Any] = {"rotary_embedding_dim": rotated} if rope.share < 1 else {}
        return g.op("RotaryEmbedding", heads, *tables, cells.positions, **share)

    def _norm(self, g: Graph, x: str, norm: str) -> str:
        """Normalise over the last axis."""
        weight = self.weights.parameter(g, f"{self.name}.{norm}.weight")
        return g.op("RMSNormalization", x, weight, axis=-1, epsilon=self.config.norm_eps, name=norm)

    def _scatter(self, g: Graph, past: str, update: str, lengths: str, name: str, result: str) -> str:
        mode = {"mode": self.mode} if self.mode == "circular" else {}  # linear is the operator's own default
        return g.op("TensorScatter", past, update, lengths, axis=2, name=name, result=result, **mode)


def needs_spare_row(weights: Weights) -> bool:
    """Return whether a part of the model quantises its inputs, which a last bit could move by a whole step."""
    return weights.precisions.quantised


def spare_row(g: Graph, weights: Weights, seen: str) -> str:
    """Add to seen (B, 1, S, C), under int8, a row that sees everything."""
    if not needs_spare_row(weights):
        return seen
    return g.op("Pad", seen, g.int64(0, 1), g.scalar(True), g.int64(2), name="spare_row")
