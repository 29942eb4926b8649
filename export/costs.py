"""Cost of one token in each part of the model: FLOPs (a multiply-add is 2) and bytes of weights and cache read."""

from collections.abc import Callable

from ..runtime.format.manifest import Costs, CostTable, LayerCosts
from ..train.model.config import ModelConfig
from .graph.weights import Precision
from .model.heads import execution_of

FP32_BYTES = 4
COPE_PER_KEY = 8.0
"""FLOPs of one head for the contextual position of one key: sigmoid, sum, min, floor, fraction, product, two sums."""
Cost = Callable[[int, int], float]
"""Cost of a matrix (inputs, outputs) for one token."""


def costs(config: ModelConfig, precision: Precision) -> Costs:
    """Return the manifest's two tables, from the shapes of the matrices; norms and activations are negligible."""
    layers = range(config.num_layers)
    matrix = {"fp32": _fp32_bytes, "int8": _int8_bytes}[precision]
    sliced = config.heads.routing != "all" and execution_of(config, precision) == "sliced"
    flops = CostTable(
        lm_head=_flops(config.dim, config.vocab_size),
        layers=[_layer(config, i, sliced, _flops, _flops, None) for i in layers],
    )
    read = CostTable(
        lm_head=matrix(config.dim, config.vocab_size),
        layers=[_layer(config, i, sliced, matrix, _fp32_bytes, FP32_BYTES) for i in layers],
    )
    return Costs(flops=flops, weight_bytes=read)


def _flops(inputs: int, outputs: int) -> float:
    return 2.0 * inputs * outputs


def _fp32_bytes(inputs: int, outputs: int) -> float:
    return float(FP32_BYTES * inputs * outputs)


def _int8_bytes(inputs: int, outputs: int) -> float:
    return float(inputs * outputs + FP32_BYTES * outputs)  # with one scale per output


def _layer(
    config: ModelConfig, layer: int, sliced: bool, matrix: Cost, router: Cost, cache_bytes: int | None
) -> LayerCosts:
    """Return the costs of one layer.

    Args:
        config: The model.
        layer: Number of the layer, from 0.
        sliced: Whether routed heads multiply only the slices of q and o that a token chose. All heads attend even then,
            since they share the keys that must be read.
        matrix: Cost of a matrix that int8 quantises.
        router: Cost of a matrix that always stays fp32.
        cache_bytes: Bytes of a number in the cache; None where the cost is FLOPs.
    """
    dim, ffn, heads, width = config.dim, config.ffn, config.num_heads, config.resolved_head_dim
    queries, keys = heads * width, config.num_kv_heads * width
    hidden = ffn.dim if ffn.routing == "dense" else ffn.expert_dim
    shared = ffn.shared_expert_dim if ffn.routing != "dense" else 0
    keys_and_values = matrix(dim, 2 * keys)
    attention, per_key = keys_and_values, 2.0 * keys * cache_bytes if cache_bytes else 4.0 * queries
    if not sliced:
        attention += matrix(dim, queries) + matrix(queries, dim)
    if config.positions_of(layer) == "cope":
        positions = 2 * router(width, config.attention.max_positions)  # embeddings, and the steps between them
        attention += positions if cache_bytes else heads * positions
        counted = cache_bytes if cache_bytes and config.counts_cells(layer) else 0
        per_key += counted if cache_bytes else COPE_PER_KEY * heads
    exit_check = router(dim, 1) if config.depth.exit_criterion == "router" else matrix(dim, config.vocab_size)
    return LayerCosts(
        attention=attention,
        attention_per_key=per_key,
        router=_routers(config, layer, router),
        expert=matrix(dim, 2 * hidden) + matrix(hidden, dim),
        shared_expert=matrix(dim, 2 * shared) + matrix(shared, dim) if shared else 0.0,
        depth_router=(1 + config.depth.per_token) * router(dim, 1) if config.has_depth_router(layer) else 0.0,
        exit_check=exit_check if layer in config.depth.exit_layers else 0.0,
        skipped_kv=keys_and_values if config.depth.skipped_kv == "project" else 0.0,
        head=matrix(dim, width) + matrix(width, dim) if sliced else 0.0,
    )


def _routers(config: ModelConfig, layer: int, router: Cost) -> float:
    """Return what a token that runs the layer pays for choosing experts, heads, window and their thresholds."""
    outputs = 0
    if config.ffn.routing != "dense":
        outputs += config.ffn.num_experts + config.ffn.per_token
    if config.heads.routing != "all":
        outputs += config.num_heads + 2 * bool(config.heads.shared_heads)
        outputs += config.heads.per_token or config.heads.routing == "adaptive"
    if config.window_of(layer) and config.attention.window_kind == "learned":
        outputs += 1
    return router(config.dim, outputs) if outputs else 0.0
