"""Sizes of recurrent mixers, from which their costs follow. D width, H heads, W width of a head, R rank, C channels."""

import math

from ..train.model.config.model import ModelConfig

Shape = tuple[int, int]
"""Inputs and outputs of a matrix."""
FP32_BYTES = 4
PER_CELL = {"retnet": 5.0, "mamba2": 5.0, "gated_delta": 9.0, "rwkv7": 9.0}
"""FLOPs of a token for each number of the state: decay 1, v k^T 2, S r 2, and of the delta rules S a 2 and (S a) b^T 2.
"""


def matrices(config: ModelConfig, layer: int) -> list[Shape]:
    """Return the large projections of a layer, which have the precision of attention."""
    dim, inner = config.dim, config.num_heads * config.state_head_dim
    mixer = config.mixer_of(layer)
    if mixer == "mamba2":
        return [(dim, 2 * inner + 2 * config.state_head_dim + config.num_heads), (inner, dim)]
    projections = 3 if mixer == "rwkv7" else 4  # r, k, v; or q, k, v and gate
    return [*[(dim, inner)] * projections, (inner, dim)]


def gate_rows(config: ModelConfig, layer: int) -> list[Shape]:
    """Return the small matrices of a layer with one output per head, which are float32 and not packed."""
    return [(config.dim, config.num_heads)] * 2 if config.mixer_of(layer) == "gated_delta" else []


def low_rank(config: ModelConfig, layer: int) -> list[Shape]:
    """Return the low-rank matrices of a layer, which are float32 in every precision; our operators pack them."""
    if config.mixer_of(layer) != "rwkv7":
        return []
    rank = config.recurrence.resolved_rank(config.dim)
    return [(config.dim, rank), (rank, config.num_heads * config.state_head_dim)] * 3  # of w, a and g


def state_flops(config: ModelConfig, layer: int) -> float:
    """Return the FLOPs of one token for the recurrence and the short convolution of a layer."""
    shapes = config.state_shapes(layer)
    flops = PER_CELL[config.mixer_of(layer)] * math.prod(shapes["state"])
    if "conv" in shapes and config.mixer_of(layer) != "rwkv7":
        channels, earlier = shapes["conv"]
        flops += 2.0 * channels * (earlier + 1)
    return flops


def state_bytes(config: ModelConfig, layer: int) -> float:
    """Return the bytes of the states of a layer, read and written: float32 in every precision."""
    return 2.0 * FP32_BYTES * sum(math.prod(shape) for shape in config.state_shapes(layer).values())
