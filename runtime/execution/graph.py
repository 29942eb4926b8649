"""The opened graph of a model: what ONNX Runtime loaded, and the names of its inputs and outputs."""

from dataclasses import dataclass
from typing import Any

from ..format.manifest import KV, Manifest, Model
from .memory.kv_cache import THRESHOLDS, cache_shapes
from .memory.states import state_shapes
from .usage.cost import Meter


@dataclass(frozen=True)
class Graph:
    """A graph that is ready to run, and what its caches need."""

    ort: Any
    """The module onnxruntime."""
    session: Any
    """The session of ONNX Runtime."""
    manifest: Manifest
    meter: Meter
    """Computes costs by the tables of this graph."""
    device: str
    """"cpu" or "cuda"."""
    kv: KV
    """Precision of keys and values."""
    mixes_sequences: bool
    """Whether one pass takes rows of several sequences; else each sequence runs alone."""
    rebinds: bool = False
    """Whether inputs are bound again before every pass: on CUDA, binding copies them to the device."""


def reported(model: Model) -> list[str]:
    """Name the outputs of the graph other than caches and states."""
    names = ["logits", "selected_experts", "layers_run", "exit_layer", "new_lengths"]
    names += ["zero_experts"] * (model.most_zero_experts > 0)
    names += ["selected_heads"] * model.routes_heads + ["windows"] * model.has_windows
    return names + ["hidden"] * model.hidden_states


def thresholds_of(model: Model) -> tuple[str, ...]:
    """Name the inputs of the graph that are thresholds."""
    return (*THRESHOLDS, *["head_top_p"] * model.dials_heads, *["router_ratio"] * model.dials_ratio)


def expected_names(model: Model, *, mixes_sequences: bool) -> tuple[set[str], set[str]]:
    """Name the inputs and outputs that the graph must have."""
    rows = ("slots", "logit_rows") if mixes_sequences else ("num_logits",)
    caches = [*cache_shapes(model, 1), *state_shapes(model)]
    inputs = {"ids", "positions", "lengths", *rows, *thresholds_of(model)}
    inputs |= {f"past_{kind}.{layer}" for kind, layer in caches}
    return inputs, {*reported(model), *(f"present_{kind}.{layer}" for kind, layer in caches)}
