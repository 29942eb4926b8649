"""The whole graph. Mirrors `train/model/transformer.py`.

B batch, T time, N = B*T tokens, n of them, D width, L layers, E experts, V vocabulary, C capacity of a cache,
X columns that a layer reports.
A prompt is one sequence (B = 1, any T); decoding is a batch of sequences at T = 1, each with its own lengths and
thresholds.
"""

from collections.abc import Mapping

import numpy as np
import onnx

from ...runtime.format.manifest import Precisions
from ...train.model.attention.rope import rotary_tables
from ...train.model.config.model import ModelConfig
from ...train.model.config.rope import RopeConfig
from ..graph.builder import BOOL, INT64, Array, Graph, Later
from ..graph.lazy_array import LazyArray
from ..graph.proto import model_proto
from ..graph.weights import FP32, Weights
from .attention.attention import Cache, Cells, Shared
from .attention.heads import Execution, execution_of
from .attention.window import Tables
from .block import Batch, Block, LayerInputs, reported, seen
from .embedding import Embedding
from .mixers.steps import States, every_token
from .output_head import OutputHead
from .recurrent_block import RecurrentBlock
from .routing.exits import confidence, exit_router
from .routing.thresholded_router import EVERYTHING
from .signature import graph_inputs, graph_outputs

FIRST = 1e-20
"""Least threshold of heads: a mass of 0 is below it, so that the first head is always taken."""


def build(
    config: ModelConfig,
    state: Mapping[str, Array | LazyArray],
    precisions: Precisions = FP32,
    heads: Execution | None = None,
    scales: Mapping[str, Array] | None = None,
    later: Later | None = None,
    *,
    hidden: bool = False,
) -> onnx.ModelProto:
    """Build the model as one ONNX graph of standard operators.

    Args:
        config: The model.
        state: The checkpoint's weights by name; of controllers only the windows, see `source.weights_of`.
        precisions: Precision of each part.
        heads: How routed heads run; None takes the faster way for their size.
        scales: Factors of the scales of blocks in int4 by matrix, from a calibration.
        later: Takes the content of large weights; None puts it into the graph.
        hidden: Whether the graph also gives the hidden states, after the last norm, of every token.

    Raises:
        AssertionError: A weight of the checkpoint is not used exactly once.
    """
    weights = Weights(state, precisions, scales)
    g = Graph("adaptive", later=later)
    TransformerGraph(g, weights, config, heads or execution_of(config, precisions.attention)).write(hidden=hidden)
    return model_proto(g, weights, graph_inputs(config), graph_outputs(config, hidden=hidden))


class TransformerGraph:
    """Writes the operators of the whole model. The graph of the target `cuda` replaces some of its methods."""

    block: type[Block] = Block
    """Writes one layer with attention."""
    recurrent_block: type[RecurrentBlock] = RecurrentBlock
    """Writes one layer with a recurrent mixer."""
    output_head: type[OutputHead] = OutputHead
    """Writes the last norm and the logits."""

    def __init__(self, g: Graph, weights: Weights, config: ModelConfig, heads: Execution) -> None:
        self.g, self.weights, self.config, self.heads = g, weights, config, heads
        weights.share(g, config.recursion.shared)
        with g.scope("batch"):
            shape = g.op("Shape", "ids")
            self.size, self.time = g.ops("Split", shape, outputs=2, axis=0, num_outputs=2)  # (1,) each
            self.tokens = g.op("Mul", self.size, self.time)
            self.batch = self._batch()
            self.router_top_p = self._per_token(self._or_everything("router_top_p"))
            self.head_top_p: tuple[str, ...] = ("",) * config.num_layers
            if "head_top_p" in graph_inputs(config):
                level = g.op("Max", self._or_everything("head_top_p"), g.scalar(FIRST))
                self.head_top_p = self._per_token(level)
            self.router_ratio: tuple[str, ...] = ("",) * config.num_layers
            if config.dials_ratio:
                self.router_ratio = self._per_token("router_ratio")
            self.depth_threshold = self._per_token("depth_threshold")
            self.exit_threshold = self._per_token("exit_threshold")
            self.lengths = self._per_layer(g.op("Reshape", "lengths", g.int64(-1)))  # (B,) each
        self.head = self.output_head(g, weights, config)
        self.embedding = Embedding(weights, config, self.head)

    def write(self, *, hidden: bool = False) -> None:
        """Write every operator, up to the outputs of the graph; the hidden states are one where asked for."""
        g, layers = self.g, self.config.num_layers
        every_token = g.op("Expand", g.scalar(True), g.op("Concat", self.tokens, g.int64(1), axis=0))  # (N, 1)
        alive, exit_layer = None, g.op("Expand", g.scalar(-1), g.op("Shape", every_token))
        x = self.embedding.write(self.batch.positions)
        chosen, runs = [], []
        going: str | None = None  # the tokens that ran the last repetition; None for all
        for i in range(layers):
            with g.scope(f"layers.{i}"):
                here = alive
                if going and self.config.follows_router(i):
                    here = g.op("And", alive, going, name="going") if alive else going
                block = self.block if self.config.attends(i) else self.recurrent_block
                out = block(self.weights, self.config, i, self.batch).write(g, x, here, self._inputs(i))
                x = out.x
                if self.config.has_depth_router(i):
                    going = out.runs
                chosen.append(out.chosen)
                runs.append(out.runs or every_token)
            if i in self.config.depth.exit_layers:
                with g.scope(f"exit.{i}"):
                    exits = self._exits(i, x, alive or every_token, self.exit_threshold[i])
                    exit_layer = g.op("Where", exits, g.scalar(i), exit_layer, name="exit_layer")
                    alive = g.op("And", alive or every_token, g.op("Not", exits), name="alive")

        per_layer = g.op("Concat", g.int64(layers), self.size, self.time, axis=0)
        layers_run = g.op("Reshape", g.op("Concat", *runs, axis=0), per_layer, result="layers_run")
        self._report(chosen, per_layer, layers_run)
        g.op("Reshape", exit_layer, g.op("Shape", "ids"), result="exit_layer")
        g.op("Add", "lengths", self._written(layers_run), result="new_lengths")
        self._last_logits(x)
        if hidden:
            self._hidden(x)

    def _inputs(self, layer: int) -> LayerInputs:
        """Return the inputs of one layer."""
        none = Cache("", "")
        inputs = LayerInputs(
            none, none, self.lengths[layer], self.router_top_p[layer], self.depth_threshold[layer],
            self.head_top_p[layer], self.router_ratio[layer],
        )  # fmt: skip
        if self.config.attends(layer):
            parts = ("key", "value", "counted") if self.config.counts_cells(layer) else ("key", "value")
            past, present = (Cache(*(f"{when}_{part}.{layer}" for part in parts)) for when in ("past", "present"))
            return inputs._replace(past=past, present=present)
        names = self.config.state_shapes(layer)
        before, after = (States(*(f"{when}_{name}.{layer}" for name in names)) for when in ("past", "present"))
        return inputs._replace(before=before, after=after)

    def _report(self, chosen: list[str], per_layer: str, layers_run: str) -> None:
        """Write what each token used as outputs: chosen of each layer (N, X), layers_run (L, B, T)."""
        g, columns = self.g, reported(self.config)
        shapes = {"windows": per_layer} | {
            name: g.op("Concat", per_layer, g.int64(number), axis=0)
            for name, number in columns.items()
            if name != "windows"
        }
        parts: tuple[str, ...] = (g.op("Concat", *chosen, axis=0),)
        if len(columns) > 1:
            parts = g.ops("Split", parts[0], g.int64(*columns.values()), outputs=len(columns), axis=1)
        for name, part in zip(columns, parts, strict=True):
            values = g.op("Cast", part, to=INT64 if name == "windows" else BOOL)
            g.op("Reshape", values, shapes[name], result=name)
        if self.config.has_windows and "windows" not in columns:  # one number a layer
            sizes = np.array(self.batch.attention.windows, np.int64).reshape(-1, 1, 1)
            g.op("Mul", g.op("Cast", layers_run, to=INT64), g.constant(sizes), result="windows")

    def _written(self, layers_run: str) -> str:
        """Return the number of places that each layer's cache gained, (L, B) or (1,) int64."""
        if self.config.depth.skipped_kv == "project":
            return self.time
        return self.g.op("ReduceSum", self.g.op("Cast", layers_run, to=INT64), self.g.int64(2), keepdims=0)

    def _batch(self) -> Batch:
        g, config = self.g, self.config
        head_dim, layers = config.resolved_head_dim, range(config.num_layers)
        places = mask = ""
        if unlimited := [i for i in layers if config.attends(i) and not config.window_of(i)]:
            capacity = g.op("Squeeze", g.op("Shape", f"past_key.{unlimited[0]}", start=2, end=3))
            places = g.op("Range", g.scalar(0), capacity, g.scalar(1))
        shapes = tuple(
            g.op("Concat", self.size, g.int64(-1, heads, head_dim), axis=0)
            for heads in (config.num_heads, 2 * config.num_kv_heads)
        )
        one_sequence = g.op("Equal", self.size, g.int64(1))
        positions = g.op("Reshape", "positions", g.int64(-1))
        if unlimited:
            mask = seen(g, self.weights, places, "positions")
        counts = any(config.counts_cells(i) for i in layers)
        tables = Tables(g, self.weights, config)
        return Batch(
            one_sequence=one_sequence,
            size=self.size,
            num_tokens=self.tokens,
            positions=positions,
            cells=Cells(None, None, "positions", "positions", mask),
            places=places,
            grid=g.op("Concat", self.size, g.int64(1), self.time, g.int64(1), axis=0) if counts else "",
            attention=Shared(self._rotary(), (shapes[0], shapes[1]), tables.windows, tables.reach, self.heads),
            steps=every_token(g, self.size, self.time, positions) if config.has_states else None,
        )

    def _rotary(self) -> list[tuple[str, str] | None]:
        """Add cos and sin of each kind of rotary positions, and return those of each layer."""
        tables: dict[RopeConfig | None, tuple[str, str] | None] = {None: None}
        for number, rope in enumerate(self.config.ropes):
            cos, sin = (table.numpy() for table in rotary_tables(self.config, rope))
            name = f"rotary.{number}" if number else "rotary"
            tables[rope] = self.g.weight(f"{name}.cos", cos), self.g.weight(f"{name}.sin", sin)
        return [tables[self.config.rope_of(layer)] for layer in range(self.config.num_layers)]

    def _or_everything(self, level: str) -> str:
        """Turn a level of 1, which keeps everything, into EVERYTHING: (L, B)."""
        g = self.g
        return g.op("Where", g.op("GreaterOrEqual", level, g.scalar(1.0)), g.scalar(EVERYTHING), level)

    def _per_token(self, thresholds: str) -> tuple[str, ...]:
        """Repeat the threshold of each sequence for its tokens: (L, B) -> (N, 1) for each layer."""
        g = self.g
        spread = g.op("Concat", g.int64(self.config.num_layers), self.size, self.time, axis=0)
        values = g.op("Expand", g.op("Unsqueeze", thresholds, g.int64(2)), spread)  # (L, B, T)
        return self._per_layer(g.op("Reshape", values, g.int64(-1, 1)))

    def _per_layer(self, values: str) -> tuple[str, ...]:
        """Split (L * n, ...) into (n, ...) for each layer."""
        layers = self.config.num_layers
        return self.g.ops("Split", values, outputs=layers, axis=0, num_outputs=layers) if layers > 1 else (values,)

    def _exits(self, layer: int, x: str, alive: str, exit_threshold: str) -> str:
        """Return which tokens leave here, (N, 1) bool; only tokens whose threshold is below 1 compute a confidence."""
        g, criterion = self.g, self.config.depth.exit_criterion
        asked = g.op("And", alive, g.op("Less", exit_threshold, g.scalar(1.0)))
        rows = g.op("Reshape", g.op("NonZero", g.op("Reshape", asked, g.int64(-1))), g.int64(-1))  # (n,)
        normed = self.head.normed(g, g.op("Gather", x, rows, axis=0))
        if criterion == "router":
            sure = exit_router(g, self.weights, f"exit_routers.{layer}", normed)
        else:
            sure = confidence(g, criterion, self.head.logits(g, normed), self.config.vocab_size)
        leaves = g.op("Greater", sure, g.op("Gather", exit_threshold, rows, axis=0))  # (n, 1)
        return g.op("ScatterND", g.op("And", asked, g.scalar(False)), g.op("Unsqueeze", rows, g.int64(1)), leaves)

    def _num_logits(self) -> str:
        """Return `num_logits` as a vector, (1,)."""
        return self.g.op("Reshape", "num_logits", self.g.int64(1))

    def _last_logits(self, x: str) -> None:
        """Write the logits of the last `num_logits` tokens of each sequence: (N, D) -> (B, num_logits, V)."""
        g = self.g
        grid = g.op("Concat", self.size, self.time, g.int64(self.config.dim), axis=0)
        wanted = self._num_logits()
        last = g.op("Slice", g.op("Reshape", x, grid), g.op("Neg", wanted), g.int64(2**62), g.int64(1))
        logits = self.head.logits(g, self.head.normed(g, g.op("Reshape", last, g.int64(-1, self.config.dim))))
        shape = g.op("Concat", self.size, wanted, g.int64(self.config.vocab_size), axis=0)
        g.op("Reshape", logits, shape, result="logits")

    def _hidden(self, x: str) -> None:
        """Write the hidden states of all tokens, after the last norm: (N, D) -> (B, T, D)."""
        grid = self.g.op("Concat", self.size, self.time, self.g.int64(self.config.dim), axis=0)
        self.g.op("Reshape", self.head.normed(self.g, x), grid, result="hidden")
