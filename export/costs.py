"""What one token costs in each part of the model: FLOPs (a multiply-add is 2) and bytes of weights and cache read."""

from __future__ import annotations

from collections.abc import Callable

from ..runtime.manifest import Costs, CostTable, LayerCosts
from ..train.model.config import ModelConfig
from .weights import Precision

FP32_BYTES = 4
Cost = Callable[[int, int], float]
"""Of a matrix (inputs, outputs) for one token."""


def costs(config: ModelConfig, precision: Precision) -> Costs:
    """The manifest's two tables, from the shapes of the matrices: norms and activations are left out as negligible."""
    layers = range(config.num_layers)
    matrix = {"fp32": _fp32_bytes, "int8": _int8_bytes}[precision]
    flops = CostTable(
        head=_flops(config.dim, config.vocab_size), layers=[_layer(config, i, _flops, _flops, None) for i in layers]
    )
    read = CostTable(
        head=matrix(config.dim, config.vocab_size),
        layers=[_layer(config, i, matrix, _fp32_bytes, FP32_BYTES) for i in layers],
    )
    return Costs(flops=flops, weight_bytes=read)


def _flops(inputs: int, outputs: int) -> float:
    return 2.0 * inputs * outputs


def _fp32_bytes(inputs: int, outputs: int) -> float:
    return float(FP32_BYTES * inputs * outputs)


def _int8_bytes(inputs: int, outputs: int) -> float:
    return float(inputs * outputs + FP32_BYTES * outputs)  # and a scale for each output


def _layer(config: ModelConfig, layer: int, matrix: Cost, router: Cost, cache_bytes: int | None) -> LayerCosts:
    """One layer by the cost of a matrix that can be quantised and of one that stays fp32.

    `cache_bytes` is the size of a number in the cache, or None where the cost is FLOPs.
    """
    dim, ffn = config.dim, config.ffn
    queries, keys = config.num_heads * config.width_of_head, config.num_kv_heads * config.width_of_head
    hidden = ffn.dim if ffn.routing == "dense" else ffn.expert_dim
    shared = ffn.shared_expert_dim if ffn.routing != "dense" else 0
    keys_and_values = matrix(dim, 2 * keys)
    return LayerCosts(
        attention=matrix(dim, queries) + keys_and_values + matrix(queries, dim),
        attention_per_key=2.0 * keys * cache_bytes if cache_bytes else 4.0 * queries,
        router=0.0 if ffn.routing == "dense" else router(dim, ffn.num_experts),
        expert=matrix(dim, 2 * hidden) + matrix(hidden, dim),
        shared_expert=matrix(dim, 2 * shared) + matrix(shared, dim) if shared else 0.0,
        depth_router=router(dim, 1) if config.has_depth_router(layer) else 0.0,
        exit_check=matrix(dim, config.vocab_size) if layer in config.depth.exit_layers else 0.0,
        skipped_kv=keys_and_values if config.depth.skipped_kv == "project" else 0.0,
    )
