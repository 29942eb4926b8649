"""The inputs and outputs of the graph of every target: names, element types and shapes.

B batch, T time, D width, L layers, E experts, Z zero-computation experts, H heads, K key/value heads, V vocabulary,
C capacity of a cache, W width of a head.
"""

from onnx import TensorProto

from ...runtime.format.manifest import KV
from ...train.model.config.model import ModelConfig
from ..graph.builder import BOOL, FLOAT, INT64
from ..graph.proto import Signature

SCALE_BYTES = 4
"""Bytes of the float32 scale that follows the W numbers of an int8 key or value."""
CACHE_TYPES: dict[KV, int] = {"fp32": FLOAT, "fp16": TensorProto.FLOAT16, "int8": TensorProto.INT8}


def graph_inputs(config: ModelConfig, kv: KV = "fp32") -> Signature:
    """Return the element type and shape of each input, by name."""
    layers = config.num_layers
    signature: Signature = {
        "ids": (INT64, ["B", "T"]),
        "positions": (INT64, ["B", "T"]),
        "lengths": (INT64, [layers, "B"]),
        "router_top_p": (FLOAT, [layers, "B"]),
        "depth_threshold": (FLOAT, [layers, "B"]),
        "exit_threshold": (FLOAT, [layers, "B"]),
        "num_logits": (INT64, []),
    }
    if config.heads.routing in ("top_p", "adaptive"):
        signature["head_top_p"] = (FLOAT, [layers, "B"])
    if config.dials_ratio:
        signature["router_ratio"] = (FLOAT, [layers, "B"])
    return signature | _caches(config, "past", kv)


def graph_outputs(config: ModelConfig, kv: KV = "fp32", *, hidden: bool = False) -> Signature:
    """Return the element type and shape of each output, by name; the hidden states among them where asked for."""
    layers = config.num_layers
    signature: Signature = {
        "logits": (FLOAT, ["B", "num_logits", config.vocab_size]),
        "selected_experts": (BOOL, [layers, "B", "T", config.num_experts]),
        "layers_run": (BOOL, [layers, "B", "T"]),
        "exit_layer": (INT64, ["B", "T"]),
        "new_lengths": (INT64, [layers, "B"]),
    }
    if config.ffn.has_zero_experts:
        signature["zero_experts"] = (BOOL, [layers, "B", "T", config.ffn.zero_experts.total])
    if config.heads.routing != "all":
        signature["selected_heads"] = (BOOL, [layers, "B", "T", config.num_heads])
    if config.has_windows:
        signature["windows"] = (INT64, [layers, "B", "T"])
    if hidden:
        signature["hidden"] = (FLOAT, ["B", "T", config.dim])
    return signature | _caches(config, "present", kv)


def cache_width(config: ModelConfig, kv: KV) -> int:
    """Return the elements of one key or value in the cache."""
    return config.resolved_head_dim + (SCALE_BYTES if kv == "int8" else 0)


def _caches(config: ModelConfig, when: str, kv: KV) -> Signature:
    """Return what layers remember: KV caches, or the states of a recurrent mixer, which are float32 with any KV cache.

    A layer with a window has its own capacity, since its cache is a ring.
    """
    signature: Signature = {}
    for i in range(config.num_layers):
        if not config.attends(i):
            for name, shape in config.state_shapes(i).items():
                signature[f"{when}_{name}.{i}"] = (FLOAT, ["B", *shape])
            continue
        capacity = f"C.{i}" if config.window_of(i) else "C"
        for part in ("key", "value"):
            signature[f"{when}_{part}.{i}"] = (
                CACHE_TYPES[kv],
                ["B", config.num_kv_heads, capacity, cache_width(config, kv)],
            )
        if config.counts_cells(i):
            signature[f"{when}_counted.{i}"] = (FLOAT, ["B", 1, capacity, 1])
    return signature
