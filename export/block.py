"""One layer. Mirrors `train/model/block.py`: the `If` of a layer that a token may leave out is its third line.

B batch, T time, N = B*T tokens, n of them in this layer, D width, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..train.model.config import ModelConfig
from .attention import Attention, Cache, Cells
from .depth import depth_scores
from .graph import FLOAT, INT64_ZERO, Graph
from .moe import dense_ffn, moe
from .weights import Weights


@dataclass(frozen=True)
class Batch:
    """What every layer reads, computed once in the root graph."""

    one_sequence: str  # () bool: B == 1
    size: str  # (1,) int64: B
    num_tokens: str  # (1,) int64: N
    positions: str  # (N,) int64
    cells: Cells  # of a layer that every token runs
    places: str  # (C,) int64: 0, 1, ... C - 1
    shapes: tuple[str, str]  # (B, -1, H, W) and (B, -1, 2K, W) as int64 vectors
    rotary: tuple[str, str]  # cos and sin


class LayerInputs(NamedTuple):
    past: Cache
    present: Cache  # the names that the outputs shall have
    lengths: str  # (B,) int64
    router_top_p: str  # (N, 1) float32
    depth_threshold: str  # (N, 1) float32


class LayerOutputs(NamedTuple):
    x: str  # (N, D)
    runs: str | None  # (N, 1) bool; None where every token runs
    selected: str  # (N, E) float32


class Block:
    def __init__(self, weights: Weights, config: ModelConfig, layer: int, batch: Batch) -> None:
        self.weights, self.config, self.batch = weights, config, batch
        self.name = f"layers.{layer}"
        self.routed = config.has_depth_router(layer)
        self.attention = Attention(weights, f"{self.name}.attention", config, batch.rotary, batch.shapes)

    def write(self, g: Graph, x: str, alive: str | None, inputs: LayerInputs) -> LayerOutputs:
        """x (N, D), alive (N, 1) bool or None while nobody can have left -> LayerOutputs."""
        runs, scores = alive, None
        if self.routed:
            scores = depth_scores(g, self.weights, f"{self.name}.depth_router", x, self.config.norm_eps)
            passes = g.op("GreaterOrEqual", scores, inputs.depth_threshold, name="passes")
            runs = g.op("And", passes, alive) if alive else passes
        if runs is None:
            normed = self._norm(g, x, "attention_norm")
            present = self.attention.write(g, normed, self.batch.cells, inputs.past, inputs.lengths, inputs.present)
            out, selected = self._residuals(g, x, normed, self.batch.cells, present, inputs.router_top_p)
            return LayerOutputs(out, None, selected)
        return self._skippable(g, x, runs, scores, inputs)

    def _skippable(self, g: Graph, x: str, runs: str, scores: str | None, inputs: LayerInputs) -> LayerOutputs:
        """The layer inside its `If`, for the tokens that run it; without any, x goes through."""
        project = self.config.depth.skipped_kv == "project"
        places = g.op("NonZero", g.op("Reshape", runs, g.int64(-1)))  # (1, n)
        rows = g.op("Reshape", places, g.int64(-1), name="rows")  # (n,)
        someone = g.op("Greater", g.op("Size", rows), g.scalar(0), name="someone_runs")
        if project:  # a skipped token pays for its keys and values and for nothing else
            all_normed = self._norm(g, x, "attention_norm")
            present = self.attention.write(g, all_normed, self.batch.cells, inputs.past, inputs.lengths, inputs.present)

        def run(b: Graph) -> Sequence[str]:
            own = b.op("Gather", x, rows, axis=0)  # (n, D)
            cells = self._cells(b, rows, inputs.lengths)
            if project:
                normed, cache = b.op("Gather", all_normed, rows, axis=0), present
            else:
                normed = self._norm(b, own, "attention_norm")
                cache = self.attention.write(b, normed, cells, inputs.past, inputs.lengths, Cache("", ""))
            top_p = b.op("Gather", inputs.router_top_p, rows, axis=0)
            out, selected = self._residuals(b, own, normed, cells, cache, top_p)
            if scores is not None:
                gate = b.op("Mul", b.op("Gather", scores, rows, axis=0), b.scalar(2.0))
                out = b.op("Add", own, b.op("Mul", gate, b.op("Sub", out, own)), name="gated")
            into = b.op("Unsqueeze", rows, b.int64(1))
            out = b.op("ScatterND", x, into, out, name="scatter_rows")
            selected = b.op("ScatterND", self._nobody(b), into, selected)
            return [out, selected] if project else [out, selected, *cache]

        def skip(b: Graph) -> Sequence[str]:
            return [x, self._nobody(b)] if project else [x, self._nobody(b), *inputs.past]

        if project:
            out, selected = g.branch(someone, "run", [FLOAT] * 2, run, skip)
        else:
            names = ("", "", *inputs.present)
            out, selected, *_ = g.branch(someone, "run", [FLOAT] * 4, run, skip, results=names)
        return LayerOutputs(out, runs, selected)

    def _residuals(
        self, g: Graph, x: str, normed: str, cells: Cells, cache: Cache, router_top_p: str
    ) -> tuple[str, str]:
        """h = x + attention(norm(x)); out = h + moe(norm(h)): (n, D) -> (n, D) and selected (n, E) float32."""
        with g.scope("attention"):
            h = g.op("Add", x, self.attention.attend(g, normed, cells, cache))
        normed = self._norm(g, h, "ffn_norm")
        if self.config.ffn.routing == "dense":
            with g.scope("ffn"):
                out = g.op("Add", h, dense_ffn(g, self.weights, f"{self.name}.ffn", normed))
                shape = g.op("Concat", g.op("Shape", x, start=0, end=1), g.int64(1), axis=0)
                return out, g.op("Expand", g.scalar(1.0), shape)
        with g.scope("moe"):
            return moe(g, self.weights, f"{self.name}.moe", self.config.ffn, normed, router_top_p, residual=h)

    def _cells(self, g: Graph, rows: str, lengths: str) -> Cells:
        """The grid of the rows that run: side by side in a prompt, one a sequence in a batch of single tokens."""
        batch = self.batch
        number = g.op("Shape", rows)  # (1,) = n
        index = g.op("Range", g.scalar(0), g.op("Size", rows), g.scalar(1))
        index = g.op("Unsqueeze", g.op("Where", batch.one_sequence, index, rows), g.int64(1))  # (n, 1)
        count = g.op("Where", batch.one_sequence, number, batch.size)
        own = g.op("Gather", batch.positions, rows, axis=0)
        empty = g.op("ConstantOfShape", count, value=INT64_ZERO)
        grid = g.op("Concat", batch.size, g.int64(-1), axis=0)
        positions = g.op("Reshape", g.op("ScatterND", empty, index, own), grid)  # (B, S)
        last = positions
        if self.config.depth.skipped_kv == "none":  # places are counted by this layer's own tokens
            side_by_side = g.op("Where", batch.one_sequence, g.op("Size", rows), g.scalar(1))
            offsets = g.op("Range", g.scalar(0), side_by_side, g.scalar(1))
            last = g.op("Add", g.op("Unsqueeze", lengths, g.int64(1)), offsets)  # (B, S)
        return Cells(index, count, positions, seen(g, self.weights, batch.places, last))

    def _norm(self, g: Graph, x: str, which: str) -> str:
        weight = self.weights.parameter(g, f"{self.name}.{which}.weight")
        return g.op("RMSNormalization", x, weight, axis=-1, epsilon=self.config.norm_eps, name=which)

    def _nobody(self, g: Graph) -> str:
        """Selections of nobody, (N, E) float32."""
        shape = g.op("Concat", self.batch.num_tokens, g.int64(self.config.num_experts), axis=0)
        return g.op("ConstantOfShape", shape)


def seen(g: Graph, weights: Weights, places: str, last: str) -> str:
    """places (C,), last (B, S): the last place a cell looks at -> (B, 1, S, C) bool, under int8 (B, 1, S + 1, C)."""
    visible = g.op("LessOrEqual", places, g.op("Unsqueeze", last, g.int64(1, 3)), name="seen")
    if weights.precision == "fp32":
        return visible
    return g.op("Pad", visible, g.int64(0, 1), g.scalar(True), g.int64(2), name="spare_row")
