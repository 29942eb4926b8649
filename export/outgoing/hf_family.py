"""The Hugging Face family that a model of ours is one of, and its `config.json`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...contract.errors import UserError
from ...train.model.config.model import ModelConfig
from ...train.model.config.thresholds import levels

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
"""Family -> class of transformers."""


@dataclass(frozen=True)
class Outgoing:
    """A model as a Hugging Face family has it."""

    family: str
    config: Mapping[str, Any]
    """Content of config.json, without the ends of texts."""


def outgoing(config: ModelConfig) -> Outgoing:
    """Find the family of a model.

    Raises:
        UserError: None of them has its features; the message names the first that does not fit.
    """
    for feature, fits in FEATURES.items():
        if not fits(config):
            raise _no_family(feature)
    family = _dense_family(config) if config.ffn.routing == "dense" else _mixture_family(config)
    fields = _fields(config) | _window(config, family)
    if family in ("llama", "qwen3", "qwen3_moe"):
        fields["attention_bias"] = config.attention.qkv_bias
    if family == "llama":
        fields["mlp_bias"] = config.ffn.bias
    if config.ffn.routing != "dense":
        fields |= _mixture(config, family)
    return Outgoing(family, {"architectures": [CLASSES[family]], "model_type": family, **fields})


def _no_family(feature: str) -> UserError:
    return UserError(
        f"this model has {feature}, which none of the families that can be written has ({', '.join(CLASSES)}); export "
        "it as ONNX, without --to"
    )


def _exact_experts(config: ModelConfig) -> int:
    """Return the number of experts of every token; 0 where it varies."""
    ffn = config.ffn
    if ffn.routing == "top_k":
        return int(ffn.experts_per_token)
    whole = all(level >= 1 for level in levels(ffn.router_top_p, config.num_layers))
    fixed = ffn.controller == "fixed" and not ffn.per_token and whole
    return ffn.most_experts if fixed and ffn.most_experts is not None else 0


FEATURES: Mapping[str, Callable[[ModelConfig], bool]] = {
    "mixers with a recurrent state (model.mixers)": lambda config: not config.has_states,
    "layers that tokens skip": lambda config: config.depth.layers_share == 1,
    "layers that are repeated": lambda config: config.recursion.times == 1,
    "early exits": lambda config: not config.depth.exit_layers,
    "heads that tokens choose": lambda config: config.heads.routing == "all",
    "contextual, learned or no positions": lambda config: all(
        config.positions_of(layer) == "rope" for layer in range(config.num_layers)
    ),
    "windows that adapt": lambda config: not config.has_windows or config.attention.window_kind == "fixed",
    "windows of several lengths": lambda config: len({config.window_of(i) for i in range(config.num_layers)} - {0}) < 2,
    "LayerNorm": lambda config: config.norm == "rms",
    "norms of outputs": lambda config: config.norm_place == "pre",
    "a parallel residual": lambda config: not config.parallel_residual,
    "a softcap of scores or logits": lambda config: not config.attention.softcap and not config.logits_softcap,
    "a scale of its embedding": lambda config: config.embedding_scale == 1,
    "QK-norm over all heads together": lambda config: config.attention.qk_norm != "full",
    "rotary positions that differ by layer": lambda config: len(config.ropes) == 1,
    "heads that are rotated in part": lambda config: config.ropes[0].share == 1,
    "rotary positions of the kind longrope": lambda config: config.ropes[0].scaling.kind != "longrope",
    "a feed-forward part without a gate": lambda config: config.ffn.gated,
    "an activation other than silu": lambda config: config.ffn.activation == "silu",
    "feed-forward widths that differ by layer": lambda config: (
        isinstance(config.ffn.dim, int) or len(set(config.ffn.dim)) == 1
    ),
    "a number of experts that varies by token": lambda config: (
        config.ffn.routing == "dense" or _exact_experts(config) > 0
    ),
    "zero-computation experts": lambda config: not config.ffn.has_zero_experts,
    "a shared expert": lambda config: config.ffn.routing == "dense" or not config.ffn.shared_expert_dim,
    "scores of experts other than softmax": lambda config: config.ffn.score == "softmax",
    "biases of its router": lambda config: not config.ffn.router_bias and not config.ffn.selection_bias,
    "gates per task": lambda config: not config.ffn.task_bias,
}
"""Feature that no family has -> whether a model is without it."""


def _dense_family(config: ModelConfig) -> str:
    attention, biased = config.attention, config.attention.qkv_bias or config.attention.o_bias
    if attention.qk_norm == "head":
        if attention.qkv_bias != attention.o_bias:
            raise _no_family("QK-norm and biases of one projection of attention alone")
        if config.ffn.bias:
            raise _no_family("QK-norm and biases in its feed-forward part")
        return "qwen3"
    if attention.qkv_bias and not attention.o_bias:
        if config.ffn.bias:
            raise _no_family("biases of queries, keys, values and feed-forward part, but not of the output projection")
        return "qwen2"
    if attention.qkv_bias != attention.o_bias:
        raise _no_family("a bias of the output projection of attention alone")
    if not config.has_windows:
        return "llama"
    if biased or config.ffn.bias or not all(config.window_of(layer) for layer in range(config.num_layers)):
        raise _no_family("windows in some layers, or with biases, and no QK-norm")
    return "mistral"


def _mixture_family(config: ModelConfig) -> str:
    attention, ffn = config.attention, config.ffn
    if ffn.bias:
        raise _no_family("biases in its experts")
    if config.has_windows and not all(config.window_of(layer) for layer in range(config.num_layers)):
        raise _no_family("experts and windows in some layers")
    if attention.qk_norm == "head":
        if attention.qkv_bias != attention.o_bias:
            raise _no_family("QK-norm and biases of one projection of attention alone")
        return "qwen3_moe"
    if attention.qkv_bias or attention.o_bias:
        raise _no_family("experts, and biases in attention without QK-norm")
    if not ffn.renormalize or ffn.dense_layers:
        raise _no_family("experts without QK-norm, and weights that are not renormalised or layers without experts")
    return "mixtral"


def _fields(config: ModelConfig) -> dict[str, Any]:
    rope = config.ropes[0]
    dense = config.ffn.dim if isinstance(config.ffn.dim, int) else config.ffn.dim[0]
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": dense,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.resolved_head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_theta": rope.theta,
        "rope_scaling": _scaling(config),
        "use_cache": True,
    }


def _scaling(config: ModelConfig) -> dict[str, Any] | None:
    """Return the scaling of rotary positions by the names of transformers, which 4 and 5 both read."""
    scaling = config.ropes[0].scaling
    if scaling.kind == "none":
        return None
    fields: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        fields["original_max_position_embeddings"] = scaling.original_context
    if scaling.kind == "llama3":
        fields |= {"low_freq_factor": scaling.low_frequency_factor, "high_freq_factor": scaling.high_frequency_factor}
    if scaling.kind == "yarn":
        fields |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        if scaling.attention_factor is not None:
            fields["attention_factor"] = scaling.attention_factor
    return fields


def _window(config: ModelConfig, family: str) -> dict[str, Any]:
    windows = [config.window_of(layer) for layer in range(config.num_layers)]
    window = max(windows)
    if family in ("mistral", "mixtral"):
        return {"sliding_window": window or None}
    if family == "llama":
        return {}
    fields: dict[str, Any] = {"use_sliding_window": bool(window), "sliding_window": window or None}
    if family in ("qwen2", "qwen3"):
        fields["layer_types"] = ["sliding_attention" if each else "full_attention" for each in windows]
        fields["max_window_layers"] = windows.index(window)
    return fields


def _mixture(config: ModelConfig, family: str) -> dict[str, Any]:
    ffn, chosen = config.ffn, _exact_experts(config)
    if family == "mixtral":
        return {
            "intermediate_size": ffn.expert_dim,
            "num_local_experts": ffn.num_experts,
            "num_experts_per_tok": chosen,
        }
    return {
        "num_experts": ffn.num_experts,
        "num_experts_per_tok": chosen,
        "moe_intermediate_size": ffn.expert_dim,
        "norm_topk_prob": ffn.renormalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(ffn.dense_layers),
    }
