"""The experts on a GPU: one MoE operator that computes every expert, and weighs those that were not chosen by 0.

Choosing among them would mean to read back how many tokens chose each, which stops the GPU in every layer. N tokens,
D width, E experts, F hidden.
"""

import numpy as np

from ...train.model.config.model import ModelConfig
from ...train.model.config.sections import FFNConfig
from ..graph.builder import Array, Graph
from ..model.experts.moe import add_others
from ..model.routing.router import ExpertLevels, router
from .attention import MICROSOFT
from .half import HalfWeights, half, wide

MOST_EXPERTS = 16
"""Most experts that are all computed; with more, zero-row dispatch computes the chosen ones."""
ALIGNMENT = 8
"""The width and the hidden size of an expert must be a multiple of this for the CUDA kernels."""
LEAST_SIZE = 16
"""Smallest width and hidden size of the CUDA kernels."""
NOTHING = 1e-30
"""Routing weight of an expert that was not chosen: its logarithm is finite, and its share of the sum is 0."""


def is_fused(config: ModelConfig) -> bool:
    """Return whether the MoE operator computes the experts of a model."""
    ffn = config.ffn
    sizes = (config.dim, ffn.expert_dim)
    fits = all(size >= LEAST_SIZE and size % ALIGNMENT == 0 for size in sizes)
    fits = fits and ffn.activation == "silu" and ffn.gated and not ffn.bias
    return ffn.routing != "dense" and fits and config.num_experts <= MOST_EXPERTS


def computes_all(config: FFNConfig) -> bool:
    """Return whether the MoE operator computes every expert that a token can use, and not only those it chose."""
    return config.routing != "top_k" or config.has_zero_experts


def fused_moe(
    g: Graph, weights: HalfWeights, name: str, config: FFNConfig, x: str, levels: ExpertLevels, residual: str
) -> tuple[str, str]:
    """Compute residual + sum over selected e of g_e E_e(x) + shared(x), (N, D), and selected (N, E + Z) float32.

    Without a residual, "", the sum alone. The operator chooses k experts by a softmax over its own input. The logarithm
    of our routing weights makes it choose as our router did: k is the number that every token has under top-k, else the
    most that a token can have. A token without any expert gets their mean times 0.
    """
    routes = router(g, weights, f"{name}.router", config, x, levels)
    routing_weights = routes.routing_weights
    if routes.candidates:
        nothing = g.op("ConstantOfShape", g.op("Shape", routes.selected))
        routing_weights = g.op("ScatterElements", nothing, routes.candidates, routing_weights, axis=-1)  # (N, E)
    scores = g.op("Log", g.op("Max", routing_weights, g.scalar(NOTHING)), name="routing_scores")
    gate_up, down = (weights.matrix(f"{name}.{part}") for part in ("gate_up", "down"))  # (E, D, 2F), (E, F, D)
    precision = weights.precision_of(f"{name}.gate_up")
    in_half = precision == "fp16"
    store = weights.stored if in_half else weights.floats
    out = g.op(
        "MoE", *((half(g, x), half(g, scores)) if in_half else (x, scores)),
        store(g, f"{name}.gate_up.rows", gate_up.map(interleaved, (gate_up.shape[2], gate_up.shape[1])), precision), "",
        store(g, f"{name}.down.rows", down.swapaxes(1, 2), precision), "",
        domain=MICROSOFT, name="experts",
        k=config.candidates if computes_all(config) else int(config.experts_per_token),
        normalize_routing_weights=1, activation_type="swiglu", swiglu_fusion=1,
        activation_alpha=1.0, activation_beta=0.0,
    )  # fmt: skip
    if in_half:
        out = wide(g, out)
    if not config.renormalize or config.has_zero_experts:
        # the operator's weights add up to 1, those of this model to the mass of the experts that were chosen
        out = g.op("Mul", out, g.op("ReduceSum", routing_weights, g.int64(1), keepdims=1))
    if residual:
        out = g.op("Add", residual, out)
    return add_others(g, weights, name, config, x, routes, out), routes.all_selected or routes.selected


def interleaved(gate_up: Array) -> Array:
    """Return gate and up of each hidden unit side by side, as MoE reads them: (E, D, 2F) -> (E, 2F, D)."""
    experts, dim, both = gate_up.shape
    halves = gate_up.reshape(experts, dim, 2, both // 2)  # (E, D, 2, F)
    return np.ascontiguousarray(halves.transpose(0, 3, 2, 1)).reshape(experts, both, dim)
