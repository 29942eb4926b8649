"""Windows: the number of tokens that a layer attends to, in a cache that is a ring.

Mirrors `train/model/attention/window.py`.

B batch, S cells a sequence, n rows (tokens of this layer), D width, C capacity of the ring. The place of a token is the
number of tokens that the layer held before. The token at place p is in cell p mod C, so nothing in a ring ever moves.
"""

from typing import NamedTuple

import numpy as np

from ....train.model.attention.window import LEVELS, window_by_length, window_levels
from ....train.model.config.model import ModelConfig
from ...graph.builder import INT64, Array, Graph
from ...graph.weights import Weights
from ..routing.thresholded_router import linear


class Ring(NamedTuple):
    """The cells of one layer's cache."""

    cells: str  # (C,) int64: 0, 1, ... C - 1
    size: str  # (1,) int64: C


def ring_of(g: Graph, cache: str) -> Ring:
    """Return the ring of a cache (B, K, C, W)."""
    size = g.op("Shape", cache, start=2, end=3)
    return Ring(g.op("Range", g.scalar(0), g.op("Squeeze", size), g.scalar(1)), size)


def seen_in_ring(g: Graph, ring: Ring, places: str, reach: str) -> str:
    """Return which cells each token sees, (B, 1, S, C) bool.

    Places and reach, (B, S) int64, are where a token is and how many tokens it sees. Cell c only holds places that
    are c mod C. The nearest of them at or before a token at place p is (p - c) mod C away, and is seen if within reach.

    The cell really holds that place if the place is within reach. A later token of this pass, at most T - 1 places
    ahead, may have overwritten an earlier place, which is C or more places before that token. If C >= window + T - 1,
    the overwritten place is out of reach. If C is smaller, it holds the whole context and nothing is overwritten;
    places before the first are out of reach, which is at most min(window, p + 1).
    """
    distance = g.op("Mod", g.op("Sub", _column(g, places), ring.cells), ring.size)  # (B, 1, S, C), 0..C-1
    return g.op("Less", distance, _column(g, reach), name="seen")


def behind_the_seam(g: Graph, ring: Ring, places: str) -> str:
    """Return which cells hold older tokens than cell 0, (B, 1, 1, C) bool: those after the last one written."""
    last = g.op("Slice", places, g.int64(-1), g.int64(2**62), g.int64(1))  # (B, 1)
    return g.op("Greater", ring.cells, _column(g, g.op("Mod", last, ring.size)))


def _column(g: Graph, grid: str) -> str:
    """Reshape (B, S) -> (B, 1, S, 1), once for every reader in this graph."""
    if ("column", grid) not in g.derived:
        g.derived["column", grid] = (g.op("Unsqueeze", grid, g.int64(1, 3)),)
    return g.derived["column", grid][0]


class Tables:
    """Windows that depend on the place, as tables (context_length,) int64 in the root graph; equal ones are shared."""

    def __init__(self, g: Graph, weights: Weights, config: ModelConfig) -> None:
        kind, so_far = config.attention.window_kind, np.arange(1, config.context_length + 1)
        self.windows: list[int | str | None] = []
        """For each layer one number (0 without a window), a table of windows by place, or None where tokens choose."""
        self.reach: list[str | None] = []
        """For each layer the table of min(window, place + 1); None without a window or where tokens choose."""
        self._written: dict[bytes, str] = {}
        for layer in range(config.num_layers):
            most = config.window_of(layer)
            if not most or kind == "learned":
                self.windows.append(None if most else 0)
                self.reach.append(None)
                continue
            name = f"layers.{layer}.attention.window"
            if kind == "length":
                by_length = window_by_length(config, layer)
                self.windows.append(self._table(g, f"{name}_by_length", by_length))
            else:
                source = config.recursion.source_of(layer)
                buffer = f"layers.{source}.attention.window_controller.window"
                by_length = np.asarray(weights.take(buffer) if kind == "entropy" else most).astype(np.int64)
                self.windows.append(int(by_length))
            self.reach.append(self._table(g, f"{name}_reach", np.minimum(by_length, so_far)))

    def _table(self, g: Graph, name: str, table: Array) -> str:
        if table.tobytes() not in self._written:
            self._written[table.tobytes()] = g.weight(name, table)
        return self._written[table.tobytes()]


def learned_windows(g: Graph, weights: Weights, name: str, config: ModelConfig, layer: int, x: str) -> str:
    """Compute the window of each token, at the level min(floor(15 score), 14): x (n, D) normed -> (n, 1) int64."""
    with g.scope("window_router"):
        scores = g.op("Sigmoid", linear(g, weights, f"{name}.window_router", x), name="window_scores")
        level = g.op("Cast", g.op("Floor", g.op("Mul", scores, g.scalar(float(LEVELS)))), to=INT64)
        level = g.op("Min", level, g.scalar(LEVELS - 1))
        return g.op("Gather", g.constant(window_levels(config, layer)), level, name="windows")
