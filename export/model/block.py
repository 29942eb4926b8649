"""One layer, in an `If` where a token may skip it. Mirrors `train/model/block.py`.

B batch, T time, N = B*T tokens, n of them in this layer, D width, E experts, Z zero-computation experts, H heads,
X = E + Z + H + 1 columns that a layer reports of a token: its experts, its heads where they are routed, its window
where the tokens of a layer differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...train.model.config.model import ModelConfig
from ..graph.builder import FLOAT, INT64_ZERO, Graph
from ..graph.weights import Weights
from .attention.attention import Attended, Attention, Cache, Cells, Shared, spare_row
from .experts.moe import dense_ffn, moe
from .mixers.steps import States, Steps
from .norm import parameters_of, state_norm
from .routing.depth import DepthRoutes, depth_router
from .routing.router import ExpertLevels


@dataclass(frozen=True)
class Batch:
    """Inputs that every layer reads, computed once in the root graph."""

    one_sequence: str
    """() bool: B == 1."""
    size: str
    """(1,) int64: B."""
    num_tokens: str
    """(1,) int64: N."""
    positions: str
    """(N,) int64."""
    cells: Cells
    """The grid of a layer that every token runs."""
    places: str
    """(C,) int64: 0, 1, ... C - 1, of a cache that is not a ring."""
    grid: str
    """(B, 1, T, 1) as an int64 vector, where a cache counts its cells."""
    attention: Shared
    """The inputs that the attention of every layer shares."""
    steps: Steps | None = None
    """The steps of a layer that every token runs; None where no layer has a recurrent mixer."""


class LayerInputs(NamedTuple):
    """Inputs of one layer. One with attention has caches, one with a recurrent mixer has states."""

    past: Cache
    present: Cache  # the names of the outputs
    lengths: str  # (B,) int64
    router_top_p: str  # (N, 1) float32
    depth_threshold: str  # (N, 1) float32
    head_top_p: str  # (N, 1) float32, where heads have a threshold
    router_ratio: str  # (N, 1) float32, where tokens choose among few candidates
    before: States = States("")
    after: States = States("")  # the names of the outputs


class LayerOutputs(NamedTuple):
    """Outputs of one layer."""

    x: str  # (N, D)
    runs: str | None  # (N, 1) bool; None where every token runs
    chosen: str  # (N, X) float32, zeros where the layer is skipped


def reported(config: ModelConfig) -> dict[str, int]:
    """Return the number of columns of each part that a layer reports, by name; X in all."""
    by_token = config.has_windows and config.attention.window_kind in ("length", "learned")
    heads = config.num_heads if config.heads.routing != "all" else 0
    columns = {
        "selected_experts": config.num_experts,
        "zero_experts": config.ffn.zero_experts.total,
        "selected_heads": heads,
        "windows": int(by_token),
    }
    return {name: number for name, number in columns.items() if number}


class Block:
    """The operators of one layer."""

    def __init__(self, weights: Weights, config: ModelConfig, layer: int, batch: Batch) -> None:
        self.weights, self.config, self.layer, self.batch = weights, config, layer, batch
        self.name = f"layers.{config.recursion.source_of(layer)}"
        self.routed = config.has_depth_router(layer)
        self.attention = Attention(weights, config, layer, batch.attention)

    def write(self, g: Graph, x: str, alive: str | None, inputs: LayerInputs) -> LayerOutputs:
        """Write the layer for x (N, D); alive (N, 1) bool is None before the first exit."""
        runs, depth = self._runs(g, x, alive, inputs)
        if runs is None:
            normed = self._norm(g, x, "attention_norm")
            present = self.attention.write(g, normed, self.batch.cells, inputs.past, inputs.lengths, inputs.present)
            out, chosen = self._residuals(g, x, normed, self.batch.cells, present, inputs)
            return LayerOutputs(out, None, chosen)
        return self._skippable(g, x, runs, depth, inputs)

    def _runs(self, g: Graph, x: str, alive: str | None, inputs: LayerInputs) -> tuple[str | None, DepthRoutes | None]:
        """Return which tokens run the layer, (N, 1) bool, None for all, and what its depth router decided."""
        if not self.routed:
            return alive, None
        name = f"layers.{self.layer}.depth_router"
        depth = depth_router(g, self.weights, name, self.config, x, inputs.depth_threshold)
        return g.op("And", depth.passes, alive) if alive else depth.passes, depth

    def _rows(self, g: Graph, runs: str) -> tuple[str, str]:
        """Return the rows that run the layer, (n,) int64, and whether there are any."""
        places = g.op("NonZero", g.op("Reshape", runs, g.int64(-1)))  # (1, n)
        rows = g.op("Reshape", places, g.int64(-1), name="rows")  # (n,)
        return rows, g.op("Greater", g.op("Size", rows), g.scalar(0), name="someone_runs")

    def _of_rows(self, g: Graph, inputs: LayerInputs, rows: str) -> LayerInputs:
        """Return the inputs with the thresholds of the rows that run the layer, (n, 1) each."""

        def own(value: str) -> str:
            return g.op("Gather", value, rows, axis=0) if value else ""

        return inputs._replace(
            router_top_p=own(inputs.router_top_p),
            head_top_p=own(inputs.head_top_p),
            router_ratio=own(inputs.router_ratio),
        )

    def _scattered(
        self, g: Graph, x: str, rows: str, own: str, out: str, chosen: str, depth: DepthRoutes | None
    ) -> tuple[str, str]:
        """Put the results of the rows, weighted by their depth score, among all: x (N, D), and the report (N, X)."""
        if depth is not None:
            gate = g.op("Mul", g.op("Gather", depth.scores, rows, axis=0), g.scalar(2.0))
            out = g.op("Add", own, g.op("Mul", gate, g.op("Sub", out, own)), name="gated")
        into = g.op("Unsqueeze", rows, g.int64(1))
        out = g.op("ScatterND", x, into, out, name="scatter_rows")
        return out, g.op("ScatterND", self._zeros(g), into, chosen)

    def _skippable(self, g: Graph, x: str, runs: str, depth: DepthRoutes | None, inputs: LayerInputs) -> LayerOutputs:
        """Write the layer inside its `If`, for the tokens that run it; without any, x passes through."""
        project = self.config.depth.skipped_kv == "project"
        rows, someone = self._rows(g, runs)
        if project:
            all_normed, present = self._project(g, x, runs, inputs)

        def run(b: Graph) -> Sequence[str]:
            own = b.op("Gather", x, rows, axis=0)  # (n, D)
            cells = self._cells(b, rows, inputs.lengths)
            if project:
                normed = own if all_normed == x else b.op("Gather", all_normed, rows, axis=0)
                cache = present
            else:
                normed = self._norm(b, own, "attention_norm")
                cache = self.attention.write(b, normed, cells, inputs.past, inputs.lengths, Cache("", ""))
            result, chosen = self._residuals(b, own, normed, cells, cache, self._of_rows(b, inputs, rows))
            out, chosen = self._scattered(b, x, rows, own, result, chosen, depth)
            return [out, chosen] if project else [out, chosen, cache.key, cache.value]

        def skip(b: Graph) -> Sequence[str]:
            past = inputs.past
            return [x, self._zeros(b)] if project else [x, self._zeros(b), past.key, past.value]

        if project:
            out, chosen = g.branch(someone, "run", [FLOAT] * 2, run, skip)
        else:
            names = ("", "", inputs.present.key, inputs.present.value)
            types = [FLOAT, FLOAT, *[self.attention.cache_type] * 2]
            out, chosen, *_ = g.branch(someone, "run", types, run, skip, results=names)
        return LayerOutputs(out, runs, chosen)

    def _project(self, g: Graph, x: str, runs: str, inputs: LayerInputs) -> tuple[str, Cache]:
        """Write keys and values of every token; one that skips the layer computes nothing else. Return norm(x) too."""
        normed = self._norm(g, x, "attention_norm")
        present = self.attention.write(g, normed, self.batch.cells, inputs.past, inputs.lengths, inputs.present)
        if inputs.past.counted:
            counted = self.attention.count(g, runs, self.batch.grid, inputs.past, inputs.lengths, inputs.present)
            present = present._replace(counted=counted)
        return normed, present

    def _residuals(
        self, g: Graph, x: str, normed: str, cells: Cells, cache: Cache, inputs: LayerInputs
    ) -> tuple[str, str]:
        """Write h = x + attention(norm(x)); out = h + moe(norm(h)): (n, D) -> (n, D) and chosen (n, X) float32."""
        with g.scope("attention"):
            attended = self.attention.attend(g, normed, cells, cache, inputs.head_top_p)
        return self._feed_forward(g, x, attended, inputs)

    def _feed_forward(self, g: Graph, x: str, attended: Attended, inputs: LayerInputs) -> tuple[str, str]:
        """Write what follows attention: the residual h = x + attention, and out = h + moe(norm(h))."""
        h, normed = self._residual(g, x, self._norm(g, attended.out, "attention_post_norm"))
        if self.config.is_dense(self.layer):
            with g.scope("ffn"):
                update = dense_ffn(g, self.weights, f"{self.name}.ffn", self.config.ffn, normed)
                out = g.op("Add", h, self._norm(g, update, "ffn_post_norm"))
                selected = [self._column(g, x, 1.0)]
            if self.config.num_choices > 1:
                selected.append(self._column(g, x, 0.0, self.config.num_choices - 1))
        else:
            with g.scope("moe"):
                after, levels = self.config.has_norms_after, ExpertLevels(inputs.router_top_p, inputs.router_ratio)
                out, experts = self._moe(g, normed, levels, "" if after else h)
                if after:
                    out = g.op("Add", h, self._norm(g, out, "ffn_post_norm"))
                selected = [experts]
        chosen = [*selected, *attended.choices]
        if "windows" in reported(self.config) and not self.config.window_of(self.layer):
            chosen.append(self._column(g, x, 0.0))
        return out, g.op("Concat", *chosen, axis=1, name="chosen") if len(chosen) > 1 else chosen[0]

    def _residual(self, g: Graph, x: str, attended: str) -> tuple[str, str]:
        """Compute h = x + attention, and the input of the feed-forward part: norm(h), of parallel parts norm(x)."""
        with g.scope("attention"):
            h = g.op("Add", x, attended)
        return h, self._norm(g, x if self.config.parallel_residual else h, "ffn_norm")

    def _moe(self, g: Graph, normed: str, levels: ExpertLevels, h: str) -> tuple[str, str]:
        """Compute h + moe(normed), (n, D), without h where it is "", and the selected experts, (n, E + Z) float32."""
        return moe(g, self.weights, f"{self.name}.moe", self.config.ffn, normed, levels, residual=h)

    def _cells(self, g: Graph, rows: str, lengths: str) -> Cells:
        """Build the grid of the rows that run: side by side in a prompt, one per sequence in a batch of tokens."""
        batch = self.batch
        number = g.op("Shape", rows)  # (1,) = n
        index = g.op("Range", g.scalar(0), g.op("Size", rows), g.scalar(1))
        index = g.op("Unsqueeze", g.op("Where", batch.one_sequence, index, rows), g.int64(1))  # (n, 1)
        count = g.op("Where", batch.one_sequence, number, batch.size)
        own = g.op("Gather", batch.positions, rows, axis=0)
        empty = g.op("ConstantOfShape", count, value=INT64_ZERO)
        grid = g.op("Concat", batch.size, g.int64(-1), axis=0)
        positions = g.op("Reshape", g.op("ScatterND", empty, index, own), grid)  # (B, S)
        places = positions
        if self.config.depth.skipped_kv == "none":  # places count the tokens of this layer only
            side_by_side = g.op("Where", batch.one_sequence, g.op("Size", rows), g.scalar(1))
            offsets = g.op("Range", g.scalar(0), side_by_side, g.scalar(1))
            places = g.op("Add", g.op("Unsqueeze", lengths, g.int64(1)), offsets)  # (B, S)
        window = self.config.window_of(self.layer)
        return Cells(index, count, positions, places, "" if window else seen(g, self.weights, batch.places, places))

    def _norm(self, g: Graph, x: str, which: str) -> str:
        """Write a norm of the layer; where the model has none at that place, return x."""
        has = self.config.has_norms_after if which.endswith("post_norm") else self.config.has_norms_before
        if not has:
            return x
        names = parameters_of(self.config, f"{self.name}.{which}")
        return state_norm(g, self.config, x, tuple(self.weights.parameter(g, name) for name in names), which)

    def _column(self, g: Graph, x: str, value: float, columns: int = 1) -> str:
        """Fill columns (n, columns) float32 with one value, for x (n, D)."""
        shape = g.op("Concat", g.op("Shape", x, start=0, end=1), g.int64(columns), axis=0)
        return g.op("Expand", g.scalar(value), shape)

    def _zeros(self, g: Graph) -> str:
        """Return the report of tokens that skip the layer, (N, X) float32."""
        shape = g.op("Concat", self.batch.num_tokens, g.int64(sum(reported(self.config).values())), axis=0)
        return g.op("ConstantOfShape", shape)


def seen(g: Graph, weights: Weights, places: str, last: str) -> str:
    """Return which places each cell sees, (B, 1, S, C) bool, under int8 (B, 1, S + 1, C).

    Args:
        g: The graph.
        weights: They know the precision.
        places: (C,) int64, the places of the cache.
        last: (B, S) int64, the last place that each cell sees.
    """
    return spare_row(g, weights, g.op("LessOrEqual", places, g.op("Unsqueeze", last, g.int64(1, 3)), name="seen"))
