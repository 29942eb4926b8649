"""Exported graphs run directly on ONNX Runtime, numpy in and out, with any number of sequences.

L layers, B sequences, T tokens, E experts, H heads, V vocabulary, K key/value heads, C capacity, W width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from adaptive_lm.export.model.attention.heads import Execution
from adaptive_lm.export.model.signature import graph_inputs
from adaptive_lm.export.model.transformer import build
from adaptive_lm.export.source import weights_of
from adaptive_lm.runtime.format.manifest import Precision, Precisions
from adaptive_lm.runtime.ops.library import load_library
from adaptive_lm.runtime.ops.probe import DOMAIN
from adaptive_lm.train.model import ModelConfig, ThresholdTensors, Transformer
from support.cover import covering
from support.models import CONFIGS, NUMBERED, season, tiny_model, variant

DECISIONS = ("selected_experts", "zero_experts", "layers_run", "exit_layer", "selected_heads", "windows")
AXIS = {"logits": 1, "exit_layer": 1} | {name: 2 for name in DECISIONS if name != "exit_layer"}
"""Axis of the tokens in each output."""
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}
EVERYTHING: dict[str, Any] = {"depth": {"layers_share": 0.5, "exit_layers": (0, 2), "skipped_kv": "project"}}
MORE = {
    "one_layer": variant(num_layers=1),
    "one_dense_layer": variant(num_layers=1, ffn={"routing": "dense", "dim": 40}),
    "two_layers_exit": variant(num_layers=2, depth={"exit_layers": (0,)}),
    "shared_tied_project": variant(tie_embeddings=True, ffn={"shared_expert_dim": 20}, **EVERYTHING),
    "top_k_project": variant(ffn={"routing": "top_k", "experts_per_token": 2}, **EVERYTHING),
}
MODELS = CONFIGS | MORE
COVER = covering(MODELS)
"""Models that together have every mechanism, for what is tested in each precision."""


@cache
def model_of(name: str) -> Transformer:
    """Return the seeded torch model of that name in MODELS. It is shared: copy it before changing it."""
    if name in CONFIGS:
        return tiny_model(name)
    model = Transformer(MODELS[name])
    season(model, seed=len(NUMBERED) + list(MORE).index(name))
    return model.eval()


@cache
def proto_of(name: str, precision: Precision = "fp32", heads: Execution | None = None) -> onnx.ModelProto:
    return build(MODELS[name], weights_of(model_of(name)), Precisions.of(precision), heads)


@cache
def graph_of(name: str, precision: Precision = "fp32", heads: Execution | None = None) -> Graph:
    return Graph(proto_of(name, precision, heads), MODELS[name])


def readers_of(name: str, weight: str) -> int:
    """Return how many layers of a model read a weight of a layer."""
    recursion = MODELS[name].recursion
    own = "depth_router" in weight  # each repetition has its own
    return recursion.times if weight.startswith(recursion.shared) and not own else 1


@dataclass(frozen=True)
class GraphOutputs:
    """The outputs of one pass."""

    logits: np.ndarray  # (B, num_logits, V)
    selected_experts: np.ndarray  # (L, B, T, E)
    layers_run: np.ndarray  # (L, B, T)
    exit_layer: np.ndarray  # (B, T)
    new_lengths: np.ndarray  # (L, B)
    selected_heads: np.ndarray | None = None  # (L, B, T, H), where heads are routed
    windows: np.ndarray | None = None  # (L, B, T), where a layer has one
    zero_experts: np.ndarray | None = None  # (L, B, T, Z), where there are any


class Graph:
    """A graph and its ONNX Runtime session."""

    def __init__(self, proto: onnx.ModelProto, config: ModelConfig, threads: int = 1) -> None:
        self.proto, self.config = proto, config
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        if any(entry.domain == DOMAIN for entry in proto.opset_import):
            load_library().register(options)
        self.options = options
        self.session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def optimised(self, path: Path) -> onnx.ModelProto:
        """Return the graph that ONNX Runtime made of it when it was loaded."""
        self.options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(self.proto.SerializeToString(), self.options, providers=["CPUExecutionProvider"])
        return onnx.load(path)


class Sequences:
    """B sequences that one graph reads: their caches, written in place, and their lengths in each layer."""

    def __init__(
        self, graph: Graph, batch: int = 1, capacity: int = 32, fill: float = 0.0, longest: int | None = None
    ) -> None:
        """Allocate caches; those with windows are rings for passes of up to `longest` tokens; None never wraps."""
        config = graph.config
        self.graph, self.batch, self.longest = graph, batch, longest or capacity
        self.lengths = np.zeros((config.num_layers, batch), np.int64)
        self.positions = np.zeros(batch, np.int64)
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(config.num_layers):
            if not config.attends(layer):
                shapes |= {f"{kind}.{layer}": (batch, *shape) for kind, shape in config.state_shapes(layer).items()}
                continue
            window = config.window_of(layer)
            cells = min(window + self.longest - 1, capacity) if window else capacity
            for kind in ("key", "value"):
                shapes[f"{kind}.{layer}"] = (batch, config.num_kv_heads, cells, config.resolved_head_dim)
            if config.counts_cells(layer):
                shapes[f"counted.{layer}"] = (batch, 1, cells, 1)
        own = {entry.name: entry for entry in graph.session.get_inputs()}
        self.caches = {}
        for name, shape in shapes.items():
            width, dtype = own[f"past_{name}"].shape[-1], DTYPES[own[f"past_{name}"].type]
            begins_with = 0.0 if name.startswith(("state.", "conv.")) else fill  # every number of a state counts
            content = np.full((*shape[:-1], width), begins_with, dtype)
            self.caches[name] = onnxruntime.OrtValue.ortvalue_from_numpy(content, "cpu", 0)

    def run(self, ids: np.ndarray, *thresholds: ThresholdTensors, num_logits: int | None = None) -> GraphOutputs:
        """Read ids (B, T) at the thresholds of each sequence, with logits of all T by default; appends T tokens."""
        assert ids.shape[1] <= self.longest, "the rings are too small for so long a pass"
        number = ids.shape[1] if num_logits is None else num_logits
        inputs: dict[str, np.ndarray] = {
            "ids": np.asarray(ids, np.int64),
            "positions": self.positions[:, None] + np.arange(ids.shape[1]),
            "lengths": self.lengths,
        }
        batch, time = ids.shape
        with_slots = "slots" in {value.name for value in self.graph.session.get_inputs()}
        if with_slots:
            last = time * np.arange(batch)[:, None] + np.arange(time - number, time)
            inputs |= {"slots": np.arange(batch), "logit_rows": last.reshape(-1)}
        else:
            inputs["num_logits"] = np.asarray(number, np.int64)
        for name in (field for field in ThresholdTensors._fields if field in graph_inputs(self.graph.config)):
            given = [getattr(limits, name) for limits in thresholds]  # a ratio that is None is 0: all candidates
            per_sequence = [np.zeros(self.graph.config.num_layers) if one is None else one.numpy() for one in given]
            inputs[name] = np.stack(per_sequence, 1).astype(np.float32)  # (L, B)
        binding = self.graph.session.io_binding()
        for name, value in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value) if value.ndim else value)
        outputs = [output.name for output in self.graph.session.get_outputs() if "present_" not in output.name]
        for name in outputs:
            binding.bind_output(name, "cpu")
        for name, cache_ in self.caches.items():
            binding.bind_ortvalue_input(f"past_{name}", cache_)
            binding.bind_ortvalue_output(f"present_{name}", cache_)
        self.graph.session.run_with_iobinding(binding)
        arrays = dict(zip(outputs, binding.copy_outputs_to_cpu(), strict=False))
        if with_slots:
            arrays["logits"] = arrays["logits"].reshape(batch, number, -1)
        graph_out = GraphOutputs(**{name: arrays[name].copy() for name in outputs})
        self.lengths = graph_out.new_lengths
        self.positions = self.positions + ids.shape[1]
        return graph_out

    def steps(self, ids: np.ndarray, *thresholds: ThresholdTensors) -> GraphOutputs:
        """Read ids (B, T) one column at a time; return the outputs as of one pass."""
        return self.parts(ids, 1, *thresholds)

    def parts(self, ids: np.ndarray, size: int, *thresholds: ThresholdTensors) -> GraphOutputs:
        """Read ids (B, T) in passes of `size` columns; return the outputs as of one pass."""
        return joined([self.run(ids[:, t : t + size], *thresholds) for t in range(0, ids.shape[1], size)])

    def content(self) -> dict[str, np.ndarray]:
        """Copy every cache, (B, K, C, W)."""
        return {name: value.numpy().copy() for name, value in self.caches.items()}


def together(*singles: Sequences) -> Sequences:
    """Join sequences that were computed alone into one batch."""
    batch = Sequences(singles[0].graph, len(singles), longest=singles[0].longest)
    batch.lengths = np.concatenate([single.lengths for single in singles], 1)
    batch.positions = np.concatenate([single.positions for single in singles])
    contents = [single.content() for single in singles]
    for name in batch.caches:
        stacked = np.concatenate([content[name] for content in contents])
        batch.caches[name] = onnxruntime.OrtValue.ortvalue_from_numpy(stacked, "cpu", 0)
    return batch


def joined(parts: list[GraphOutputs]) -> GraphOutputs:
    """Join the outputs of consecutive passes into those of one pass."""
    whole = {
        name: np.concatenate([getattr(part, name) for part in parts], axis)
        for name, axis in AXIS.items()
        if getattr(parts[0], name) is not None
    }
    return GraphOutputs(**whole, new_lengths=parts[-1].new_lengths)


def row(graph_out: GraphOutputs, b: int) -> GraphOutputs:
    """Return the outputs of one sequence of a batch."""
    axis = AXIS | {"new_lengths": 2}  # the axis of the tokens follows that of the sequences
    return GraphOutputs(**{
        field.name: np.take(value, [b], axis[field.name] - 1)
        for field in fields(graph_out)
        if (value := getattr(graph_out, field.name)) is not None
    })  # fmt: skip


def same_decisions(graph_out: GraphOutputs, judge: Any, tokens: slice = slice(None)) -> None:
    """Assert that every decision equals the judge's for those of its tokens."""
    for name in DECISIONS:
        if getattr(graph_out, name) is None:
            continue
        expected = np.asarray(getattr(judge, name))
        expected = expected[:, :, tokens] if name != "exit_layer" else expected[:, tokens]
        np.testing.assert_array_equal(getattr(graph_out, name), expected, err_msg=name)


def shifted(thresholds: ThresholdTensors, by: float) -> ThresholdTensors:
    """Move thresholds a little, for fewer experts, heads, layers and exits (`by` above 0), or for more."""
    return ThresholdTensors(
        thresholds.router_top_p - 3 * by,
        thresholds.depth_threshold + by / 2,
        thresholds.exit_threshold + by,
        thresholds.head_top_p - 3 * by,
        None if thresholds.router_ratio is None else thresholds.router_ratio + by,
    )


def everything_on(config: ModelConfig) -> ThresholdTensors:
    ones = torch.ones(config.num_layers)
    return ThresholdTensors(ones, 0 * ones, ones, ones, 0 * ones if config.dials_ratio else None)


def graphs(proto: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph and every branch in it."""
    yield proto
    for node in proto.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def nodes(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for graph in graphs(proto.graph) for node in graph.node]


def initializers(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [tensor for graph in graphs(proto.graph) for tensor in graph.initializer]
