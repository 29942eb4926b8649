"""The config of a model, from the metadata of a GGUF file and the shapes of its tensors."""

import math
from typing import Any, NamedTuple

from pydantic import ValidationError

from ...model.config.model import ModelConfig
from ...model.config.rope import RopeConfig
from ..errors import ForeignFileError, UnsupportedModelError
from ..source import Claims
from .architectures import Architecture
from .metadata import Metadata
from .rope import rope_of

MAX_CONTEXT = 2**24
"""Tokens: longer than that of any published model; tables of rotary positions grow with it."""
SIGMOID = 2
"""Value of `expert_gating_func` for sigmoid scores; 0 and 1 are softmax."""


class Factors(NamedTuple):
    """Factors that a model multiplies its activations by; the import multiplies weights by them."""

    embedding: float = 1.0
    query: float = 1.0
    residual: float = 1.0
    logits: float = 1.0
    experts: float = 1.0


def config_of(metadata: Metadata, tensors: Claims, architecture: Architecture) -> ModelConfig:
    """Return the config of the model.

    Raises:
        UserError: A number that it needs is missing, contradicts a tensor, or is one that models here cannot have.
    """
    try:
        # A number outside its range may show in a section of the config, or in the whole.
        return ModelConfig.model_validate(_fields(metadata, tensors, architecture))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "its numbers"
        raise UnsupportedModelError(
            f"{metadata.path} describes a model that cannot be computed here: {place}: {first['msg']}"
        ) from None


def _fields(metadata: Metadata, tensors: Claims, architecture: Architecture) -> dict[str, Any]:
    layers, dim = _positive(metadata, "{}.block_count"), _positive(metadata, "{}.embedding_length")
    if layers > len(tensors):
        raise ForeignFileError(
            f"{metadata.path} says {layers:,} layers, but has {len(tensors):,} tensors; download it again"
        )
    heads = _one_for_all(metadata, "{}.attention.head_count", layers)
    kv_heads = _one_for_all(metadata, "{}.attention.head_count_kv", layers, heads)
    head_dim = metadata.integer("{}.attention.key_length", dim // heads)
    if metadata.integer("{}.attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError(
            f"{metadata.path} has keys of width {head_dim} and values of another; models here need one width for both"
        )
    context = _positive(metadata, "{}.context_length")
    if context > MAX_CONTEXT:
        raise UnsupportedModelError(
            f"{metadata.path} has a context of {context:,} tokens, expected at most {MAX_CONTEXT:,}"
        )
    windows = [_window(metadata, architecture, layer) for layer in range(layers)]
    return {
        "vocab_size": tensors.shape("token_embd.weight")[0],
        "context_length": context,
        "dim": dim,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "norm_eps": metadata.number("{}.attention.layer_norm_rms_epsilon"),
        "norm_place": architecture.norm_place,
        "tie_embeddings": "output.weight" not in tensors,
        "logits_softcap": metadata.number("{}.final_logit_softcapping", 0.0),
        "attention": {
            "qk_norm": architecture.qk_norm,
            "rope": _ropes(rope_of(metadata, tensors, head_dim, context), metadata, architecture, windows),
            "qkv_bias": _has_bias(tensors, "attn_q") or _has_bias(tensors, "attn_qkv"),
            "o_bias": _has_bias(tensors, "attn_output"),
            "softcap": metadata.number("{}.attn_logit_softcapping", 0.0),
            "window": windows if any(windows) else 0,
            "positions": _positions(metadata, architecture, layers),
        },
        "ffn": _ffn(metadata, tensors, architecture, layers),
    }


def factors_of(metadata: Metadata, architecture: Architecture, config: ModelConfig) -> Factors:
    """Return the factors of embedding, queries, residuals, logits and experts."""
    head_dim, query = config.resolved_head_dim, 1.0
    if config.num_layers == architecture.wide_query_layers:
        query = math.sqrt(head_dim / (config.dim // config.num_heads))
    embedding, residual, logits = math.sqrt(config.dim) if architecture.scaled_embedding else 1.0, 1.0, 1.0
    if architecture.scales:
        embedding = metadata.number("{}.embedding_scale", 0.0) or 1.0
        residual = metadata.number("{}.residual_scale", 0.0) or 1.0
        logits = 1 / (metadata.number("{}.logit_scale", 0.0) or 1.0)
        scale = metadata.number("{}.attention.scale", 0.0)
        query = scale * math.sqrt(head_dim) if scale else 1.0
    return Factors(embedding, query, residual, logits, metadata.number("{}.expert_weights_scale", 0.0) or 1.0)


def _positive(metadata: Metadata, key: str) -> int:
    number = metadata.integer(key)
    if not number:
        name = key.replace("{}", metadata.architecture)
        raise ForeignFileError(f"{metadata.path}: the metadata {name} is 0, expected at least 1; convert it again")
    return number


def _one_for_all(metadata: Metadata, key: str, layers: int, default: int | None = None) -> int:
    """Return a number that all layers must share."""
    if default is not None and key not in metadata:
        return default
    numbers = metadata.integers(key, layers)
    if len(set(numbers)) > 1 or not numbers[0]:
        name = key.replace("{}", metadata.architecture)
        raise UnsupportedModelError(
            f"{metadata.path}: {name} is {numbers[0]} to {max(numbers)} by layer; models here need one number, "
            "at least 1, for all layers"
        )
    return numbers[0]


def _has_bias(tensors: Claims, name: str) -> bool:
    return f"blk.0.{name}.bias" in tensors


def _window(metadata: Metadata, architecture: Architecture, layer: int) -> int:
    """Return the window of a layer in tokens; 0 for none."""
    window = metadata.integer("{}.attention.sliding_window", 4096 if metadata.architecture == "gemma2" else 0)
    if not window or window >= metadata.integer("{}.context_length"):
        return 0
    key, period = "{}.attention.sliding_window_pattern", architecture.local_period
    if metadata.is_array(key):
        return window if metadata.integers(key, metadata.integer("{}.block_count"))[layer] else 0
    period = metadata.integer(key, period)
    return 0 if period and (layer + 1) % period == 0 else window


def _ropes(rope: RopeConfig, metadata: Metadata, architecture: Architecture, windows: list[int]) -> Any:
    """Return the rotary positions, one for all layers or a list where layers with a window have their own."""
    theta = metadata.number("{}.rope.freq_base_swa", architecture.local_theta or rope.theta)
    keeps_scaling = metadata.architecture not in ("gemma3", "olmo2") or rope.scaling.kind == "none"
    if not any(windows) or (theta == rope.theta and keeps_scaling):
        return rope.model_dump()
    local = RopeConfig(theta=theta, share=rope.share).model_dump()
    return [local if window else rope.model_dump() for window in windows]


def _positions(metadata: Metadata, architecture: Architecture, layers: int) -> Any:
    if architecture.scales and not metadata.flag("{}.rope.scaling.finetuned", True):
        return "none"  # the switch of Granite 4
    if not architecture.rope_period:
        return "rope"
    return ["none" if (layer + 1) % architecture.rope_period == 0 else "rope" for layer in range(layers)]


def _ffn(metadata: Metadata, tensors: Claims, architecture: Architecture, layers: int) -> dict[str, Any]:
    widths = metadata.integers("{}.feed_forward_length", layers) if "{}.feed_forward_length" in metadata else ()
    shared: dict[str, Any] = {"activation": architecture.activation, "bias": _has_bias(tensors, "ffn_down")}
    if widths:
        shared["dim"] = widths[0] if len(set(widths)) == 1 else list(widths)
    routed = [layer for layer in range(layers) if f"blk.{layer}.ffn_gate_inp.weight" in tensors]
    if not routed:
        return {"routing": "dense", **shared}
    first = f"blk.{routed[0]}"
    experts, used = metadata.integer("{}.expert_count"), metadata.integer("{}.expert_used_count")
    down = f"{first}.ffn_down_exps.weight"
    gating = metadata.integer("{}.expert_gating_func", 0)
    if gating > SIGMOID:
        raise UnsupportedModelError(
            f"{metadata.path} scores its experts by function {gating}; expected softmax or sigmoid"
        )
    always = f"{first}.ffn_up_shexp.weight"
    return {
        "routing": "top_p",
        "controller": "fixed",
        "router_top_p": 1.0,
        "most_experts": used,
        "experts_per_token": used,
        "num_experts": experts,
        # (E, D, F), or (D, F) where the experts are tensors of their own
        "expert_dim": tensors.shape(down if down in tensors else f"{first}.ffn_down.0.weight")[-1],
        "shared_expert_dim": tensors.shape(always)[0] if always in tensors else 0,
        "shared_gate": f"{first}.ffn_gate_inp_shexp.weight" in tensors,
        "dense_layers": [layer for layer in range(layers) if layer not in routed],
        "score": "sigmoid" if gating == SIGMOID else "softmax",
        "renormalize": metadata.flag("{}.expert_weights_norm", architecture.renormalize),
        "router_bias": f"{first}.ffn_gate_inp.bias" in tensors,
        "selection_bias": f"{first}.exp_probs_b.bias" in tensors,
        **shared,
    }
