"""The families of models that can be read, as a table: what each has beyond the plain decoder of Llama.

Sources: the `config.json` and tensor names of the models, and their definitions in transformers 5.24.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from .settings import Settings

Bias = bool | str
"""Whether there are biases, or the field of config.json that says so."""
Windows = Callable[[Settings, int], list[bool]]
"""Returns for each of N layers whether it has the window, where config.json has no `layer_types`."""


@dataclass(frozen=True)
class Shared:
    """An expert that every token uses."""

    name: str
    """Of its tensors, inside the feed-forward part."""
    width: str
    """Field with its width, or with the number of experts that make it up."""
    counted: bool = False
    """Whether that field counts experts of the usual width."""
    gate: str = ""
    """Tensor of the gate, of shape (1, D); empty where it has none."""


@dataclass(frozen=True)
class Experts:
    """A mixture in place of the feed-forward part."""

    count: str
    """Field with the number of experts."""
    width: str
    """Field with the width of one expert."""
    also: str = "num_local_experts"
    """Another name of the field with the number of experts."""
    block: str = "mlp"
    """The feed-forward part in the names of tensors."""
    router: str = "gate.weight"
    """Tensor (E, D) of the router, inside the block."""
    matrices: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    """Gate, up and down of one expert, in files with a tensor per expert."""
    fused: tuple[str, str] = ("experts.gate_up_proj", "experts.down_proj")
    """Stacks (E, 2F, D) and (E, D, F) in files where the experts are fused."""
    renormalize: bool | str = "norm_topk_prob"
    """Whether the weights of the chosen experts are divided by their sum, or the field that says so."""
    shared: Shared | None = None
    dense: Callable[[Settings, int], list[int]] = lambda _settings, _layers: []
    """Returns which of N layers have a dense feed-forward part of width `intermediate_size`."""


@dataclass(frozen=True)
class Family:
    """A family, as it differs from Llama."""

    title: str
    """The models that it covers, for the guide."""
    theta: float = 10_000.0
    """Base of the rotary positions where config.json has none."""
    local_theta: float = 0.0
    """That of layers with a window, where they have one of their own."""
    context: int = 2048
    """`max_position_embeddings` where config.json has none."""
    epsilon: float = 1e-6
    """Term of the norms where config.json has none."""
    tied: bool = False
    """Whether embedding and output head are one matrix, where config.json does not say."""
    head_dim: int = 0
    """Width of a head where config.json has none; 0: hidden_size / num_attention_heads."""
    qk_norm: Literal["none", "head", "full"] = "none"
    qkv_bias: Bias = "attention_bias"
    o_bias: Bias = "attention_bias"
    ffn_bias: Bias = False
    activation: str = "hidden_act"
    """Field with the activation."""
    norm_place: Literal["pre", "post", "sandwich"] = "pre"
    adds_one: bool = False
    """Whether norms multiply by 1 + w, and the embedding is scaled by the square root of its width (Gemma)."""
    fused: bool = False
    """Whether q, k, v are one matrix, and gate and up another (Phi-3)."""
    window: int | None = None
    """`sliding_window` where config.json has none."""
    windows: Windows | None = None
    """The layers with the window; None: all of them, where there is a window."""
    switched: bool = False
    """Whether the window needs `use_sliding_window`."""
    without_rope: bool = False
    """Whether `no_rope_layers` leaves positions out of some layers (SmolLM3)."""
    softcaps: bool = False
    """Whether scores and logits may have softcaps (Gemma 2)."""
    multipliers: bool = False
    """Whether embedding, attention, residual and logits have multipliers (Granite)."""
    experts: Experts | None = None


def _from(start: str, default: int) -> Windows:
    """Return the layers from the one that a field names."""
    return lambda settings, layers: [layer >= settings.integer(start, default, least=0) for layer in range(layers)]


def _all_but_each(period: str, default: int) -> Windows:
    """Return all layers but each n-th, where a field has n."""
    return lambda settings, layers: [
        bool((layer + 1) % settings.integer(period, settings.integer("_" + period, default))) for layer in range(layers)
    ]


def _alternate_before_last(settings: Settings, layers: int) -> list[bool]:
    last = settings.integer("max_window_layers", 28, least=0)
    return [layer % 2 == 0 and layer < last for layer in range(layers)]


def _qwen_dense(settings: Settings, layers: int) -> list[int]:
    """Return the layers without experts: those listed, and all but each n-th."""
    listed = settings.integers("mlp_only_layers") or []
    step = settings.integer("decoder_sparse_step", 1)
    return [layer for layer in range(layers) if layer in listed or (layer + 1) % step]


def _deepseek_dense(settings: Settings, layers: int) -> list[int]:
    """Return the layers without experts: the first ones, and all but each n-th."""
    first = settings.integer("first_k_dense_replace", 0, least=0)
    step = settings.integer("moe_layer_freq", 1)
    return [layer for layer in range(layers) if layer < first or layer % step]


FAMILIES: Mapping[str, Family] = {
    "llama": Family("Llama 2, 3, 3.1 to 3.3, TinyLlama, SmolLM, SmolLM2", ffn_bias="mlp_bias"),
    "smollm3": Family(
        "SmolLM3",
        theta=2_000_000.0,
        context=32768,
        tied=True,
        ffn_bias="mlp_bias",
        without_rope=True,
        switched=True,
        windows=lambda _settings, layers: [False] * layers,
    ),
    "mistral": Family("Mistral", context=131072, qkv_bias=False, o_bias=False, window=4096),
    "qwen2": Family(
        "Qwen2, Qwen2.5",
        context=32768,
        qkv_bias=True,
        o_bias=False,
        window=4096,
        switched=True,
        windows=_from("max_window_layers", 28),
    ),
    "qwen3": Family(
        "Qwen3",
        context=32768,
        head_dim=128,
        qk_norm="head",
        window=4096,
        switched=True,
        windows=_from("max_window_layers", 28),
    ),
    "phi3": Family("Phi-3, Phi-3.5, Phi-4", context=4096, epsilon=1e-5, qkv_bias=False, o_bias=False, fused=True),
    "olmo2": Family("OLMo 2", epsilon=1e-5, qk_norm="full", norm_place="post"),
    "gemma": Family("Gemma 1", context=8192, tied=True, head_dim=256, adds_one=True),
    "gemma2": Family(
        "Gemma 2",
        context=8192,
        tied=True,
        head_dim=256,
        activation="hidden_activation",
        norm_place="sandwich",
        adds_one=True,
        window=4096,
        windows=_all_but_each("sliding_window_pattern", 2),
        softcaps=True,
    ),
    "gemma3_text": Family(
        "Gemma 3 (text)",
        theta=1_000_000.0,
        local_theta=10_000.0,
        context=131072,
        tied=True,
        head_dim=256,
        qk_norm="head",
        activation="hidden_activation",
        norm_place="sandwich",
        adds_one=True,
        window=4096,
        windows=_all_but_each("sliding_window_pattern", 6),
        softcaps=True,
    ),
    "granite": Family("Granite 3 (dense)", ffn_bias="mlp_bias", multipliers=True),
    "mixtral": Family(
        "Mixtral",
        theta=1_000_000.0,
        context=131072,
        epsilon=1e-5,
        qkv_bias=False,
        o_bias=False,
        experts=Experts(
            count="num_local_experts",
            width="intermediate_size",
            block="block_sparse_moe",
            matrices=("w1", "w3", "w2"),
            renormalize=True,
        ),
    ),
    "qwen2_moe": Family(
        "Qwen1.5-MoE, Qwen2-MoE",
        context=32768,
        qkv_bias="qkv_bias",
        o_bias=False,
        window=4096,
        switched=True,
        windows=_alternate_before_last,
        experts=Experts(
            count="num_experts",
            width="moe_intermediate_size",
            shared=Shared("shared_expert", "shared_expert_intermediate_size", gate="shared_expert_gate.weight"),
            dense=_qwen_dense,
        ),
    ),
    "qwen3_moe": Family(
        "Qwen3-MoE",
        context=32768,
        qk_norm="head",
        window=4096,
        switched=True,
        experts=Experts(count="num_experts", width="moe_intermediate_size", dense=_qwen_dense),
    ),
    "olmoe": Family(
        "OLMoE",
        context=4096,
        epsilon=1e-5,
        qk_norm="full",
        experts=Experts(count="num_experts", width="intermediate_size"),
    ),
    "deepseek": Family(
        "DeepSeek-MoE v1",
        context=2048,
        experts=Experts(
            count="n_routed_experts",
            width="moe_intermediate_size",
            shared=Shared("shared_experts", "n_shared_experts", counted=True),
            dense=_deepseek_dense,
        ),
    ),
    "granitemoe": Family(
        "Granite 3 MoE",
        multipliers=True,
        experts=Experts(
            count="num_local_experts",
            width="intermediate_size",
            block="block_sparse_moe",
            router="router.layer.weight",
            fused=("input_linear.weight", "output_linear.weight"),
            renormalize=True,
        ),
    ),
}
"""`model_type` -> family. For GPT-2 and GPT-NeoX see `gpt`."""

OTHERS: Mapping[str, str] = {
    "deepseek_v2": "multi-head latent attention (MLA)",
    "deepseek_v3": "multi-head latent attention (MLA)",
    "minicpm3": "multi-head latent attention (MLA)",
    "gpt_oss": "attention sinks and clamped SwiGLU",
    "mamba": "state space layers",
    "mamba2": "state space layers",
    "falcon_mamba": "state space layers",
    "jamba": "state space layers",
    "granitemoehybrid": "state space layers",
    "rwkv": "recurrent layers",
    "lfm2": "short convolutions",
    "lfm2_moe": "short convolutions",
    "qwen3_next": "linear attention layers",
    "gemma3n": "per-layer embeddings",
    "gemma3n_text": "per-layer embeddings",
    "llama4": "chunked attention",
    "llama4_text": "chunked attention",
    "bloom": "ALiBi positions",
    "mpt": "ALiBi positions",
    "t5": "an encoder",
    "bert": "attention to later tokens",
}
"""`model_type` -> the feature that this program lacks, for the message."""
