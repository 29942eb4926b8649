"""The feed-forward part of a block in one node: router, experts, shared expert. Mirrors `export/model/moe.py`.

N tokens, D width, E experts.
"""

from ...train.model.config import ModelConfig
from ..graph.builder import Graph
from ..graph.weights import Weights
from .packed import matrix, number, ours, parameter, predictor, state_norm

ROUTINGS = ("dense", "top_p", "top_k")


def feed_forward(
    g: Graph, weights: Weights, config: ModelConfig, layer: int, h: str, x: str, runs: str, gate: str
) -> tuple[str, str]:
    """Write out = h + moe(norm(h)), with the norms of the model: (N, D) and the selected experts (N, E) bool.

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
    ffn, precision = config.ffn, number(weights.precisions.experts)
    dense, shared = ffn.routing == "dense", ffn.routing != "dense" and ffn.shared_expert_dim > 0
    name = f"layers.{layer}.{'ffn' if dense else 'moe'}"
    shifts = not dense and ffn.per_token
    gate_up, down = (f"{name}.{part}.weight" if dense else f"{name}.{part}" for part in ("gate_up", "down"))
    out, selected = ours(
        g, "FeedForward", h, x if gate or config.parallel_residual else "", runs, gate,
        "router_top_p" if ffn.routing == "top_p" else "",
        *state_norm(g, weights, config, f"layers.{layer}.ffn_norm", config.has_norms_before),
        *state_norm(g, weights, config, f"layers.{layer}.ffn_post_norm", config.has_norms_after),
        "" if dense else parameter(g, weights, f"{name}.router.weight"),
        *predictor(g, weights, f"{name}.router.per_token", shifts),
        matrix(g, weights, gate_up),
        matrix(g, weights, down),
        matrix(g, weights, f"{name}.shared.gate_up.weight") if shared else "",
        matrix(g, weights, f"{name}.shared.down.weight") if shared else "",
        outputs=2, layer=layer, eps=config.norm_eps, parallel=int(config.parallel_residual),
        num_experts=config.num_experts,
        hidden=ffn.dim if dense else ffn.expert_dim, shared_hidden=ffn.shared_expert_dim if shared else 0,
        routing=ROUTINGS.index(ffn.routing), experts_per_token=0 if dense else int(ffn.experts_per_token),
        renormalize=int(ffn.renormalize), reach=float(ffn.per_token_reach) if shifts else 0.0,
        precision_experts=precision, precision_shared=precision,
    )  # fmt: skip
    return out, selected
