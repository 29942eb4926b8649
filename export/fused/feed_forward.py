"""The feed-forward part of a block in one node: router, experts, shared expert. Mirrors `export/model/experts/moe.py`.

N tokens, D width, E experts, Z zero-computation experts.
"""

from ...train.model.config.model import ModelConfig
from ...train.model.config.zero_experts import ZeroExpertsConfig
from ...train.model.experts.moe import input_name
from ..graph.builder import Graph
from ..graph.weights import Weights
from .packed import matrix, number, ours, parameter, predictor, shaped, state_norm

ROUTINGS = ("dense", "top_p", "top_k", "relu")
SCORES = ("softmax", "sigmoid")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")


def feed_forward(
    g: Graph, weights: Weights, config: ModelConfig, layer: int, h: str, x: str, runs: str, gate: str
) -> tuple[str, str]:
    """Write out = h + moe(norm(h)), with the norms of the model: (N, D) and the selected experts (N, E + Z) bool.

    Args:
        g: The graph.
        weights: The checkpoint.
        config: The model.
        layer: Number of the layer.
        h: (N, D), after attention.
        x: (N, D), before the layer.
        runs: (N, 1) bool; "" where every token runs.
        gate: (N, 1) float32, factor of out - x; "" without a depth router.
    """
    ffn, precision, dense = config.ffn, number(weights.precisions.experts), config.is_dense(layer)
    routing = "dense" if dense else ffn.routing
    routed, shared = not dense, not dense and ffn.shared_expert_dim > 0
    by_mass, shifts = routing in ("top_p", "relu"), not dense and ffn.per_token
    zero = ZeroExpertsConfig() if dense else ffn.zero_experts
    capped = not dense and ffn.most_experts is not None
    source = f"layers.{config.recursion.source_of(layer)}"
    name = f"{source}.{'ffn' if dense else 'moe'}"
    first, end = input_name(ffn), ".weight" if dense else ""

    def vector(key: str, present: bool) -> str:
        return parameter(g, weights, f"{name}.{key}") if present else ""

    def biases(key: str, present: bool) -> list[str]:
        """Add the biases of a stack, (E, H) and (E, D), or those of one FFN as (1, H) and (1, D)."""
        if not (ffn.bias and present):
            return ["", ""]
        stacked = not dense and not key
        return [
            parameter(g, weights, f"{name}.{part}_bias") if stacked
            else shaped(g, weights, f"{name}.{key}{part}.bias", (1, -1))
            for part in (first, "down")
        ]  # fmt: skip

    out, selected = ours(
        g, "FeedForward", h, x if gate or config.parallel_residual else "", runs, gate,
        "router_top_p" if by_mass else "",
        *state_norm(g, weights, config, f"{source}.ffn_norm", config.has_norms_before),
        *state_norm(g, weights, config, f"{source}.ffn_post_norm", config.has_norms_after),
        vector("router.weight", routed),
        *predictor(g, weights, f"{name}.router.per_token", shifts),
        matrix(g, weights, f"{name}.{first}{end}"),
        matrix(g, weights, f"{name}.down{end}"),
        matrix(g, weights, f"{name}.shared.{first}.weight") if shared else "",
        matrix(g, weights, f"{name}.shared.down.weight") if shared else "",
        "router_ratio" if capped else "",
        vector("router.bias", routed and ffn.router_bias),
        vector("router.selection_bias", routed and ffn.selection_bias),
        *biases("", True),
        *biases("shared.", shared),
        shaped(g, weights, f"{name}.shared_gate.weight", (-1,)) if shared and ffn.shared_gate else "",
        vector("zero_experts.mix", zero.constants > 0),
        vector("zero_experts.constants", zero.constants > 0),
        outputs=2, layer=layer, eps=config.norm_eps, parallel=int(config.parallel_residual),
        num_experts=1 if dense else config.num_experts,
        zeros=zero.zeros, copies=zero.copies, constants=zero.constants,
        hidden=config.ffn_dim(layer), shared_hidden=ffn.shared_expert_dim if shared else 0,
        routing=ROUTINGS.index(routing), experts_per_token=0 if dense else int(ffn.experts_per_token),
        renormalize=int(ffn.renormalize), reach=float(ffn.per_token_reach) if shifts else 0.0,
        precision_experts=precision, precision_shared=precision,
        most_experts=ffn.candidates if capped else 0, score=SCORES.index(ffn.score),
        activation=ACTIVATIONS.index(ffn.activation), gated=int(ffn.gated), columns=config.num_choices,
    )  # fmt: skip
    return out, selected
