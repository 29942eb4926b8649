"""The architecture of llama.cpp that computes one of our models, or the feature that keeps it from having one."""

from typing import NamedTuple

from ...contract.errors import UserError
from ...train.model import ModelConfig
from ...train.model.config.thresholds import levels


class Family(NamedTuple):
    """An architecture of llama.cpp."""

    name: str
    permuted: bool
    """Whether rotary positions pair neighbouring components, so that the rows of q and k take another order."""


DENSE = {"none": Family("llama", permuted=True), "head": Family("qwen3", permuted=False)}
MIXTURE = {"none": Family("llama", permuted=True), "head": Family("qwen3moe", permuted=False)}


def family_of(config: ModelConfig) -> Family:
    """Return the architecture that computes a model.

    Raises:
        UserError: The model has a feature that no architecture here has; the message names it.
    """
    for feature, has_it in _features(config).items():
        if has_it:
            raise UserError(
                f"llama.cpp cannot compute this model: it has {feature}. Models of the shapes of Llama, Qwen3, Mixtral "
                "and Qwen3-MoE can be written; export the run as ONNX: adaptive export RUN --onnx"
            )
    return (DENSE if config.ffn.routing == "dense" else MIXTURE)[config.attention.qk_norm]


def experts_used(config: ModelConfig) -> int:
    """Return the number of experts of every token."""
    return config.ffn.most_experts or int(config.ffn.experts_per_token)


def _features(config: ModelConfig) -> dict[str, bool]:
    """List the features that no architecture has, by their settings, and whether the model has them."""
    attention, ffn, dense = config.attention, config.ffn, config.ffn.routing == "dense"
    qwen = attention.qk_norm == "head"
    capped = ffn.most_experts is not None and ffn.controller == "fixed" and set(
        levels(ffn.router_top_p, config.num_layers)
    ) == {1.0}  # fmt: skip
    one_rope = len(config.ropes) == 1
    scaling = config.ropes[0].scaling if one_rope else None
    return {
        f"recurrent mixers (model.mixers: {', '.join(config.recurrent_mixers)})": config.has_states,
        f"a choice of heads by token (model.heads.routing: {config.heads.routing})": config.heads.routing != "all",
        "depth routers (model.depth.layers_share)": config.depth.layers_share < 1,
        "layers that are repeated (model.recursion)": config.recursion.times > 1,
        "early exits (model.depth.exit_layers)": bool(config.depth.exit_layers),
        f"a number of experts that differs by token (model.ffn.routing: {ffn.routing})": not capped
        and ffn.routing in ("top_p", "relu"),
        "zero-computation experts (model.ffn.zero_experts)": ffn.has_zero_experts,
        "a threshold of experts per token (model.ffn.per_token)": ffn.per_token,
        "a shared expert (model.ffn.shared_expert_dim)": not dense and ffn.shared_expert_dim > 0,
        "dense layers beside experts (model.ffn.dense_layers)": bool(ffn.dense_layers),
        f"routing by {ffn.score} (model.ffn.score)": not dense and ffn.score != "softmax",
        "routing weights that are not divided by their sum (model.ffn.renormalize)": not dense and not ffn.renormalize,
        "a bias of the router (model.ffn.router_bias, selection_bias)": ffn.router_bias or ffn.selection_bias,
        "gates per task (model.ffn.task_bias)": ffn.task_bias,
        "widths that differ by layer (model.ffn.dim)": dense and not isinstance(ffn.dim, int),
        f"another activation than SwiGLU (model.ffn.activation: {ffn.activation})": ffn.activation != "silu"
        or not ffn.gated,
        "biases of the feed-forward part (model.ffn.bias)": ffn.bias and (qwen or not dense),
        "biases of attention beside QK-norm (model.attention.qkv_bias, o_bias)": qwen
        and (attention.qkv_bias or attention.o_bias),
        "a QK-norm over all heads (model.attention.qk_norm: full)": attention.qk_norm == "full",
        "positions other than rope (model.attention.positions)": any(
            config.positions_of(layer) != "rope" for layer in range(config.num_layers)
        ),
        "rotary positions that differ by layer (model.attention.rope)": not one_rope,
        "a rotated share of the heads (model.attention.rope.share)": one_rope and config.ropes[0].share != 1,
        "divisors that differ by length (model.attention.rope.scaling.kind: longrope)": scaling is not None
        and scaling.kind == "longrope"
        and (scaling.short_factors != scaling.long_factors or scaling.attention_factor != 1),
        "windows (model.attention.window)": config.has_windows,
        "softcaps (model.attention.softcap, model.logits_softcap)": attention.softcap > 0 or config.logits_softcap > 0,
        "LayerNorm (model.norm)": config.norm != "rms",
        f"norms at other places than before (model.norm_place: {config.norm_place})": config.norm_place != "pre",
        "a parallel residual (model.parallel_residual)": config.parallel_residual,
        "a scaled embedding (model.embedding_scale)": config.embedding_scale != 1,
    }
