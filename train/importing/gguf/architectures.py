"""The architectures of GGUF that can be imported, and what distinguishes each from the others.

What the metadata or the tensors of a file say is read from there; this table holds what llama.cpp has in its code.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from ..errors import UnsupportedModelError
from .metadata import Metadata


class Architecture(NamedTuple):
    """What the code of llama.cpp knows about an architecture."""

    permuted: bool = False
    """Whether rotary positions pair neighbouring components, so that the rows of q and k are in another order."""
    qk_norm: Literal["none", "head", "full"] = "none"
    norm_place: Literal["pre", "post", "sandwich"] = "pre"
    activation: Literal["silu", "gelu_tanh"] = "silu"
    renormalize: bool = True
    """Whether the routing weights of the chosen experts are divided by their sum, where the metadata does not say."""
    scaled_embedding: bool = False
    """Whether the embedding is multiplied by the square root of its width."""
    scales: bool = False
    """Whether the metadata hold factors of embedding, attention, residual and logits."""
    local_period: int = 0
    """Every layer with a number (from 1) that is no multiple of it has a window; 0: all layers have the same."""
    local_theta: float | None = None
    """Base of the rotary frequencies of layers with a window, without scaling; None: that of the others."""
    rope_period: int = 0
    """Every layer whose number (from 1) is a multiple of it has no rotary positions; 0: all have."""
    wide_query_layers: int = 0
    """Number of layers of the one size whose queries are scaled by width / heads in place of the width of a head."""


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(permuted=True),  # Llama, Mistral, Mixtral, SmolLM
    "smollm3": Architecture(permuted=True, rope_period=4),
    "granite": Architecture(permuted=True, scales=True),
    "granitemoe": Architecture(permuted=True, scales=True),
    "deepseek": Architecture(permuted=True, renormalize=False),
    "qwen2": Architecture(),
    "qwen2moe": Architecture(renormalize=False),
    "qwen3": Architecture(qk_norm="head"),
    "qwen3moe": Architecture(qk_norm="head"),
    "olmo2": Architecture(qk_norm="full", norm_place="post", local_period=4),
    "olmoe": Architecture(qk_norm="full", renormalize=False),
    "phi3": Architecture(),
    "gemma": Architecture(activation="gelu_tanh", scaled_embedding=True),
    "gemma2": Architecture(
        norm_place="sandwich", activation="gelu_tanh", scaled_embedding=True, local_period=2, wide_query_layers=46
    ),
    "gemma3": Architecture(
        qk_norm="head", norm_place="sandwich", activation="gelu_tanh", scaled_embedding=True, local_period=6,
        local_theta=10_000.0, wide_query_layers=62,
    ),
}  # fmt: skip

UNSUPPORTED = {
    "{}.attention.clamp_kqv": "clamped queries, keys and values",
    "{}.attention.max_alibi_bias": "ALiBi positions",
    "{}.attention.q_lora_rank": "latent attention (MLA)",
    "{}.attention.kv_lora_rank": "latent attention (MLA)",
    "{}.attention.temperature_scale": "attention temperature by position",
    "{}.attention.temperature_length": "attention temperature by position",
    "{}.attention.shared_kv_layers": "layers that share keys and values",
    "{}.ssm.state_size": "state space layers",
    "{}.shortconv.l_cache": "short convolutions",
    "{}.expert_group_count": "experts chosen by groups",
    "{}.nextn_predict_layers": "layers that predict several tokens",
    "{}.router_logit_softcapping": "a softcap of the router",
    "{}.swiglu_clamp_exp": "a clamped SwiGLU",
}
"""Metadata of features that no model here has, by their names for people; 0 switches each of them off."""


def architecture_of(metadata: Metadata) -> Architecture:
    """Return the architecture of a file.

    Raises:
        UnsupportedModelError: It is not one that can be imported, or has a feature that models here lack.
    """
    kind = metadata.text("general.type", "model")
    if kind != "model":
        raise UnsupportedModelError(f"{metadata.path} holds {kind!r}, expected a model; give the file of the model")
    architecture = ARCHITECTURES.get(metadata.architecture)
    if architecture is None:
        raise UnsupportedModelError(
            f"{metadata.path} is of the architecture {metadata.architecture}; those that can be imported are "
            f"{', '.join(ARCHITECTURES)}"
        )
    for key, feature in UNSUPPORTED.items():
        if metadata.is_set(key):
            name = key.replace("{}", metadata.architecture)
            raise UnsupportedModelError(f"{metadata.path} has {feature} ({name}), which models here lack")
    if not metadata.flag("{}.attention.causal", True):
        raise UnsupportedModelError(f"{metadata.path} is an encoder (attention.causal is false); expected a decoder")
    return architecture
