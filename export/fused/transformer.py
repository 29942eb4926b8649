"""The whole graph of the target `cpu`. Mirrors `export/model/transformer.py`.

B rows of ids, T time, N = B*T tokens, S slots, D width, L layers, E experts, H heads, V vocabulary. Tokens of several
sequences are in one pass, each in the slot of its row (`signature.py`). Tokens that do not run a layer pass
through its operators, so there is no `If`; an operator in which no row runs reads no weights.
"""

from collections.abc import Mapping

import numpy as np
import onnx

from ...runtime.format.manifest import KV, Precisions
from ...runtime.ops.probe import DOMAIN, VERSION
from ...train.model.config.model import ModelConfig
from ..graph.builder import INT64, Array, Graph, Later
from ..graph.lazy_array import LazyArray
from ..graph.proto import model_proto
from ..graph.weights import Weights
from ..model.norm import state_norm as norm_of_rows
from .attention import attention, by_token, window_of
from .feed_forward import feed_forward
from .mixers import mixer
from .packed import matrix, number, ours, parameter, predictor, state_norm
from .signature import graph_inputs, graph_outputs

CRITERIA = ("top_prob", "margin", "entropy", "router")


def build(
    config: ModelConfig,
    state: Mapping[str, Array | LazyArray],
    precisions: Precisions,
    kv: KV = "fp32",
    scales: Mapping[str, Array] | None = None,
    later: Later | None = None,
    *,
    hidden: bool = False,
) -> onnx.ModelProto:
    """Build the model as one ONNX graph of our operators.

    Args:
        config: The model.
        state: The checkpoint's weights by name; of controllers only the windows, see `source.weights_of`.
        precisions: Precision of each part.
        kv: Precision of keys and values in the cache.
        scales: Factors of the scales of blocks by matrix, from a calibration.
        later: Takes the content of large weights; None puts it into the graph.
        hidden: Whether the graph also gives the hidden states, after the last norm, of every token.

    Raises:
        AssertionError: A weight of the checkpoint is not used.
    """
    weights = Weights(state, precisions, scales)
    g = Graph("adaptive.cpu", later=later)
    _Transformer(g, weights, config).write(hidden=hidden)
    outputs = graph_outputs(config, kv, hidden=hidden)
    return model_proto(g, weights, graph_inputs(config, kv), outputs, {DOMAIN: VERSION})


class _Transformer:
    def __init__(self, g: Graph, weights: Weights, config: ModelConfig) -> None:
        self.g, self.weights, self.config = g, weights, config

    def write(self, *, hidden: bool) -> None:
        g, config = self.g, self.config
        self.weights.share(g, config.recursion.shared)
        x, alive, exit_layer = self._embed(), "", ""
        going = ""  # the tokens that ran the last repetition
        runs_of: list[str] = []
        selected: list[str] = []
        heads: list[str] = []
        windows: list[str] = []
        lengths: list[str] = []
        for i in range(config.num_layers):
            with g.scope(f"layers.{i}"):
                here = alive
                if going and config.follows_router(i):
                    here = g.op("And", alive, going, name="going") if alive else going
                runs, gate = self._depth_router(i, x, here) if config.has_depth_router(i) else (here, "")
                if gate:
                    going = runs
                mix = attention if config.attends(i) else mixer
                attended = mix(g, self.weights, config, i, x, runs)
                x, chosen = feed_forward(g, self.weights, config, i, attended.h, x, runs, gate)
                runs_of.append(runs)
                selected.append(chosen)
                heads.append(attended.selected_heads)
                windows.append(attended.windows)
                lengths.append(attended.new_lengths)
            if i in config.depth.exit_layers:
                with g.scope(f"exit.{i}"):
                    alive, exit_layer = self._exit(i, x, alive, exit_layer)
        self._report(runs_of, selected, heads, windows, exit_layer)
        g.op("Concat", *lengths, axis=0, name="new_lengths", result="new_lengths")
        ours(
            g, "Logits", x, *state_norm(g, self.weights, config, "norm"), self._head(), "logit_rows",
            results=["logits"], eps=config.norm_eps, softcap=config.logits_softcap, vocab=config.vocab_size,
            precision=number(self.weights.precisions.head),
        )  # fmt: skip
        if hidden:
            self._hidden(x)

    def _embed(self) -> str:
        """Embed the ids (B, T) -> (N, D)."""
        config, precision = self.config, self.weights.precisions.embedding
        learned = config.has_learned_positions
        table = matrix(self.g, self.weights, "embedding.weight")
        (x,) = ours(
            self.g, "Embedding", "ids", table, "positions" if learned else "",
            parameter(self.g, self.weights, "learned_positions") if learned else "",
            scale=config.embedding_scale, dim=config.dim, vocab=config.vocab_size, precision=number(precision),
        )  # fmt: skip
        return x

    def _hidden(self, x: str) -> None:
        """Write the hidden states of all tokens, after the last norm, by the standard operator: (N, D) -> (B, T, D)."""
        g, config = self.g, self.config
        parameters = tuple(name for name in state_norm(g, self.weights, config, "norm") if name)
        grid = g.op("Concat", g.op("Shape", "ids"), g.int64(config.dim), axis=0)
        g.op("Reshape", norm_of_rows(g, config, x, parameters, "hidden_norm"), grid, result="hidden")

    def _head(self) -> str:
        """Return the output head, which is the embedding where they are tied."""
        name = "embedding.weight" if self.config.tie_embeddings else "head.weight"
        return matrix(self.g, self.weights, name)

    def _depth_router(self, layer: int, x: str, alive: str) -> tuple[str, str]:
        """Choose the tokens that run the layer, (N, 1) bool, and the factor of its update, (N, 1) float32."""
        depth, name = self.config.depth, f"layers.{layer}.depth_router"
        runs, gate = ours(
            self.g, "DepthRouter", x, alive, "depth_threshold",
            *predictor(self.g, self.weights, name, True),
            *predictor(self.g, self.weights, f"{name}.per_token", depth.per_token),
            outputs=2, layer=layer, eps=self.config.norm_eps,
            reach=float(depth.per_token_reach) if depth.per_token else 0.0,
        )  # fmt: skip
        return runs, gate

    def _exit(self, layer: int, x: str, alive: str, exit_layer: str) -> tuple[str, str]:
        """Let tokens leave after a layer: who is still alive, (N, 1) bool, and after which layer each left, (N, 1)."""
        criterion = self.config.depth.exit_criterion
        learned = criterion == "router"
        still, left = ours(
            self.g, "Exit", x, alive, exit_layer, "exit_threshold",
            *state_norm(self.g, self.weights, self.config, "norm"),
            *predictor(self.g, self.weights, f"exit_routers.{layer}", learned),
            "" if learned else self._head(),
            outputs=2, layer=layer, eps=self.config.norm_eps, criterion=CRITERIA.index(criterion),
            softcap=self.config.logits_softcap, vocab=self.config.vocab_size,
            precision=number(self.weights.precisions.head),
        )  # fmt: skip
        return still, left

    def _report(
        self, runs_of: list[str], selected: list[str], heads: list[str], windows: list[str], exit_layer: str
    ) -> None:
        """Write what each token used as outputs; the lists have one value per layer."""
        g, config = self.g, self.config
        with g.scope("report"):
            grid = g.op("Shape", "ids")  # (B, T)
            per_layer = g.op("Concat", g.int64(config.num_layers), grid, axis=0)  # (L, B, T)
            if any(runs_of):
                everyone = "" if all(runs_of) else self._everyone(grid)
                stacked = g.op("Concat", *(runs or everyone for runs in runs_of), axis=0)
                layers_run = g.op("Reshape", stacked, per_layer, result="layers_run")
            else:
                layers_run = g.op("Expand", g.scalar(True), per_layer, result="layers_run")
            if config.num_choices == config.num_experts:
                self._stack(selected, per_layer, config.num_experts, "selected_experts")
            else:
                choices = self._stack(selected, per_layer, config.num_choices, "")
                zero = config.num_choices - config.num_experts
                results = ("selected_experts", "zero_experts")
                g.ops("Split", choices, g.int64(config.num_experts, zero), outputs=2, results=results, axis=-1)
            if config.heads.routing != "all":
                chosen = [one or self._no_heads(grid) for one in heads]
                self._stack(chosen, per_layer, config.num_heads, "selected_heads")
            if by_token(config):
                self._stack([one or self._no_windows(grid) for one in windows], per_layer, 0, "windows")
            elif config.has_windows:  # one number a layer
                sizes = [window_of(self.weights, config, i) for i in range(config.num_layers)]
                column = g.constant(np.array(sizes, np.int64).reshape(-1, 1, 1))
                g.op("Mul", g.op("Cast", layers_run, to=INT64), column, result="windows")
            if exit_layer:
                g.op("Reshape", exit_layer, grid, result="exit_layer")
            else:
                g.op("Expand", g.scalar(-1), grid, result="exit_layer")

    def _stack(self, parts: list[str], per_layer: str, columns: int, result: str) -> str:
        """Stack (N, columns) of each layer to (L, B, T, columns); without columns (N,) to (L, B, T)."""
        g = self.g
        shape = g.op("Concat", per_layer, g.int64(columns), axis=0) if columns else per_layer
        return g.op("Reshape", g.op("Concat", *parts, axis=0), shape, result=result)

    def _everyone(self, grid: str) -> str:
        """Return (N, 1) bool, all true."""
        g = self.g
        tokens = g.op("ReduceProd", grid, keepdims=1)
        return g.op("Expand", g.scalar(True), g.op("Concat", tokens, g.int64(1), axis=0))

    def _no_heads(self, grid: str) -> str:
        """Return (N, H) bool, all false, once for all layers without attention."""
        g = self.g
        if ("no_heads", grid) not in g.derived:
            shape = g.op("Concat", g.op("ReduceProd", grid, keepdims=1), g.int64(self.config.num_heads), axis=0)
            g.derived["no_heads", grid] = (g.op("Expand", g.scalar(False), shape),)
        return g.derived["no_heads", grid][0]

    def _no_windows(self, grid: str) -> str:
        """Return (N,) int64, all 0, once for all layers without a window."""
        g = self.g
        if ("no_windows", grid) not in g.derived:
            g.derived["no_windows", grid] = (g.op("Expand", g.scalar(0), g.op("ReduceProd", grid, keepdims=1)),)
        return g.derived["no_windows", grid][0]
