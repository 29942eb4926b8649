"""Cost of one token in each part of the model: FLOPs (a multiply-add is 2) and bytes of weights and cache read."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..runtime.format.manifest import KV, Costs, CostTable, LayerCosts, Precision, Precisions
from ..runtime.ops.layout import packed_bytes
from ..train.model.config.model import ModelConfig
from .cuda.experts import computes_all, is_fused
from .mixer_costs import gate_rows, low_rank, matrices, state_bytes, state_flops
from .model.attention.heads import execution_of
from .model.signature import cache_width

FP32_BYTES = 4
CACHE_BYTES: dict[KV, int] = {"fp32": 4, "fp16": 2, "int8": 1}
"""Bytes of an element of the cache."""
COPE_PER_KEY = 8.0
"""FLOPs of one head for the contextual position of one key: sigmoid, sum, min, floor, fraction, product, two sums."""
SOFTCAP_PER_KEY = 3.0
"""FLOPs of one head for the limit of the score of one key: quotient, hyperbolic tangent, product."""
Cost = Callable[[int, int], float]
"""Cost of a matrix (inputs, outputs) for one token."""


@dataclass(frozen=True)
class _Count:
    """The unit of a table, FLOPs or bytes, and how a graph spends it."""

    experts: Cost
    attention: Cost
    lm_head: Cost
    router: Cost
    """Cost of a matrix that always stays fp32."""
    head: float
    """The slices of q and o of one head where only the chosen ones are multiplied; 0 where all are one product."""
    key: float | None
    """Bytes of the keys and values of one place; None where the table counts FLOPs."""
    packed: bool = False
    """Whether our operators run: heads that were not chosen do not attend either."""
    low_rank: Cost | None = None
    """Cost of a low-rank matrix of a recurrent mixer where it is not that of any matrix that stays fp32."""
    all_experts: bool = False
    """Whether every expert that a token can use is computed for it."""


def costs(config: ModelConfig, precisions: Precisions) -> Costs:
    """Return the two tables of the portable graph, from the shapes of the matrices.

    Norms, biases and activations are small and left out.
    """
    dim, width = config.dim, config.resolved_head_dim
    sliced = config.heads.routing != "all" and execution_of(config, precisions.attention) == "sliced"
    matrix = _portable_bytes(precisions.attention)
    read = _Count(
        _portable_bytes(precisions.experts),
        matrix,
        _portable_bytes(precisions.head),
        _fp32_bytes,
        head=matrix(dim, width) + matrix(width, dim) if sliced else 0.0,
        key=2.0 * config.num_kv_heads * width * FP32_BYTES,
    )
    return Costs(flops=_table(config, _flop_count(config, sliced)), weight_bytes=_table(config, read))


def packed_costs(config: ModelConfig, precisions: Precisions, kv: KV) -> Costs:
    """Return the two tables of the graph of our operators; bytes are those of the packed matrices, with their padding.

    The bytes of a head are an equal share of q and o, which is exact where a head is a multiple of 64 wide.
    """
    dim, heads, width = config.dim, config.num_heads, config.resolved_head_dim
    sliced = config.heads.routing != "all"
    matrix = _packed_bytes(precisions.attention)
    read = _Count(
        _packed_bytes(precisions.experts),
        matrix,
        _packed_bytes(precisions.head),
        _fp32_bytes,
        head=(matrix(dim, heads * width) + matrix(heads * width, dim)) / heads if sliced else 0.0,
        key=2.0 * config.num_kv_heads * cache_width(config, kv) * CACHE_BYTES[kv],
        packed=True,
        low_rank=_packed_bytes("fp32"),
    )
    flops = _flop_count(config, sliced, packed=True)
    return Costs(flops=_table(config, flops), weight_bytes=_table(config, read))


def cuda_costs(config: ModelConfig, precisions: Precisions, kv: KV) -> Costs:
    """Return the two tables of the graph of the target `cuda`, where all heads are computed, and often all experts."""
    every = is_fused(config) and computes_all(config.ffn)
    read = _Count(
        _cuda_bytes(precisions.experts),
        _cuda_bytes(precisions.attention),
        _cuda_bytes(precisions.head),
        _fp32_bytes,
        head=0.0,
        key=2.0 * config.num_kv_heads * config.resolved_head_dim * CACHE_BYTES[kv],
        all_experts=every,
    )
    flops = replace(_flop_count(config, sliced=False), all_experts=every)
    return Costs(flops=_table(config, flops), weight_bytes=_table(config, read))


def _flop_count(config: ModelConfig, sliced: bool, *, packed: bool = False) -> _Count:
    head = 2 * _flops(config.dim, config.resolved_head_dim) if sliced else 0.0
    return _Count(_flops, _flops, _flops, _flops, head, key=None, packed=packed)


def _flops(inputs: int, outputs: int) -> float:
    return 2.0 * inputs * outputs


def _fp32_bytes(inputs: int, outputs: int) -> float:
    return float(FP32_BYTES * inputs * outputs)


def _int8_bytes(inputs: int, outputs: int) -> float:
    return float(inputs * outputs + FP32_BYTES * outputs)  # with one scale per output


def _portable_bytes(precision: Precision) -> Cost:
    """Return the bytes of a matrix of the portable graph, which widens bf16 and fp16, and stores int4 as int8."""
    return _int8_bytes if precision in ("int8", "int4") else _fp32_bytes


def _cuda_bytes(precision: Precision) -> Cost:
    """Return the bytes of a matrix of the graph for CUDA, which widens bf16 to fp32."""
    width = 2 if precision == "fp16" else FP32_BYTES
    return lambda inputs, outputs: float(width * inputs * outputs)


def _packed_bytes(precision: Precision) -> Cost:
    return lambda inputs, outputs: float(packed_bytes(precision, outputs, inputs))


def _table(config: ModelConfig, count: _Count) -> CostTable:
    layers = [_layer(config, i, count) for i in range(config.num_layers)]
    return CostTable(lm_head=count.lm_head(config.dim, config.vocab_size), layers=layers)


def _layer(config: ModelConfig, layer: int, count: _Count) -> LayerCosts:
    """Return the costs of one layer."""
    dim, ffn = config.dim, config.ffn
    dense, hidden, both = config.is_dense(layer), config.ffn_dim(layer), 1 + ffn.gated
    shared = 0 if dense else ffn.shared_expert_dim
    learned = config.depth.exit_criterion == "router"
    exit_check = count.router(dim, 1) if learned else count.lm_head(dim, config.vocab_size)
    expert = count.experts(dim, both * hidden) + count.experts(hidden, dim)
    always = count.experts(dim, both * shared) + count.experts(shared, dim) if shared else 0.0
    if count.all_experts and not dense:
        expert, always = 0.0, always + ffn.candidates * expert
    return LayerCosts(
        **(_attention(config, layer, count) if config.attends(layer) else _recurrent(config, layer, count)),
        router=_routers(config, layer, count.router),
        expert=expert,
        shared_expert=always,
        depth_router=(1 + config.depth.per_token) * count.router(dim, 1) if config.has_depth_router(layer) else 0.0,
        exit_check=exit_check if layer in config.depth.exit_layers else 0.0,
    )


def _attention(config: ModelConfig, layer: int, count: _Count) -> dict[str, float]:
    """Return the costs of the attention of a layer, by the names of their fields."""
    dim = config.dim
    queries, keys = config.num_heads * config.resolved_head_dim, config.num_kv_heads * config.resolved_head_dim
    keys_and_values = count.attention(dim, 2 * keys)
    attention = keys_and_values + _positions(config, layer, count)
    if not count.head:
        attention += count.attention(dim, queries) + count.attention(queries, dim)
    per_key, per_head_and_key = _keys(config, layer, count)
    return {
        "attention": attention,
        "attention_per_key": per_key,
        "skipped_kv": keys_and_values if config.depth.skipped_kv == "project" else 0.0,
        "head": count.head,
        "head_per_key": per_head_and_key,
    }


def _recurrent(config: ModelConfig, layer: int, count: _Count) -> dict[str, float]:
    """Return the costs of the recurrent mixer of a layer, by the names of their fields.

    Nothing grows with the text, and a token that skips the layer writes nothing.
    """
    attention = sum(count.attention(*shape) for shape in matrices(config, layer))
    attention += sum(count.router(*shape) for shape in gate_rows(config, layer))
    attention += sum((count.low_rank or count.router)(*shape) for shape in low_rank(config, layer))
    state = state_flops(config, layer) if count.key is None else state_bytes(config, layer)
    return {"attention": attention, "attention_per_key": 0.0, "skipped_kv": 0.0, "state": state}


def _positions(config: ModelConfig, layer: int, count: _Count) -> float:
    """Return what contextual positions cost before any key: their embeddings, in the portable graph also the steps."""
    if config.positions_of(layer) != "cope":
        return 0.0
    table = count.router(config.resolved_head_dim, config.attention.max_positions) * (1 if count.packed else 2)
    return table if count.key is not None else config.num_heads * table


def _keys(config: ModelConfig, layer: int, count: _Count) -> tuple[float, float]:
    """Return what each visible key costs: for a token, and for each head that it chose.

    The portable graph lets all heads attend, since they share the keys that must be read.
    """
    cope = config.positions_of(layer) == "cope"
    if count.key is not None:
        return count.key + FP32_BYTES * config.counts_cells(layer), 0.0
    capped = config.attention.softcap > 0
    per_head = 4.0 * config.resolved_head_dim + COPE_PER_KEY * cope + SOFTCAP_PER_KEY * capped
    return (0.0, per_head) if count.packed and count.head else (config.num_heads * per_head, 0.0)


def _routers(config: ModelConfig, layer: int, router: Cost) -> float:
    """Return what a token that runs the layer pays for choosing experts, heads, window and their thresholds.

    The gate of a shared expert and the rows of constant experts are counted here, since they have the form of a router.
    """
    outputs = 0
    if not config.is_dense(layer):
        outputs += config.ffn.num_logits + config.ffn.per_token + config.ffn.shared_gate
        outputs += 2 * config.ffn.zero_experts.constants  # their mix and their vectors
    if config.heads.routing != "all" and config.attends(layer):
        outputs += config.num_heads + 2 * bool(config.heads.shared_heads)
        outputs += config.heads.per_token or config.heads.routing == "adaptive"
    if config.window_of(layer) and config.attention.window_kind == "learned":
        outputs += 1
    return router(config.dim, outputs) if outputs else 0.0
