"""Tiny random models of other programs, made by transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from adaptive_lm.contract.byte_table import byte_characters

VOCAB = 300
"""Rows of the embeddings: 256 bytes, an end, and unused rows, as padded models have them."""
LENGTH = 24
"""`max_position_embeddings` of the models."""
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": LENGTH,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": LENGTH}
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4 * LENGTH,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "pad_token_id": None,
}
MIXED: dict[str, Any] = {"num_experts_per_tok": 3}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_biased": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "llama3": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama_linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}}),
    "smollm3": ("smollm3", {"num_hidden_layers": 5}),
    "mistral": ("mistral", {"sliding_window": 7, "head_dim": 8}),
    "qwen2": ("qwen2", {"rope_parameters": YARN}),
    "qwen2_window": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "phi3": ("phi3", {"sliding_window": 9, "partial_rotary_factor": 1.0}),
    "phi3_partial": (
        "phi3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}},
    ),
    "phi3_longrope": (
        "phi3",
        {
            "original_max_position_embeddings": LENGTH,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10_000.0,
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [1.0, 1.5, 2.5, 4.0],
                "original_max_position_embeddings": LENGTH,
            },
        },
    ),
    "olmo2": ("olmo2", {}),
    "gemma": ("gemma", {"head_dim": 8}),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 12,
            "sliding_window": 8,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 2.0,
        },
    ),
    "gemma3_text": (
        "gemma3_text",
        {
            "num_hidden_layers": 7,
            "head_dim": 8,
            "query_pre_attn_scalar": 12,
            "sliding_window": 8,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1_000_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
    ),
    "granite": (
        "granite",
        {"embedding_multiplier": 12.0, "attention_multiplier": 0.3, "residual_multiplier": 0.22, "logits_scaling": 3.0},
    ),
    "mixtral": ("mixtral", {**MIXED, "num_local_experts": 6, "sliding_window": None}),
    "qwen2_moe": (
        "qwen2_moe",
        {
            **MIXED,
            "num_experts": 6,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
            "mlp_only_layers": [1],
        },
    ),
    "qwen3_moe": (
        "qwen3_moe",
        {
            **MIXED,
            "num_experts": 6,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
            "head_dim": 16,
            "decoder_sparse_step": 2,
        },
    ),
    "olmoe": ("olmoe", {**MIXED, "num_experts": 6}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 4 * LENGTH}),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.5, "hidden_act": "gelu"}),
    "gpt_neox_serial": ("gpt_neox", {"rotary_pct": 1.0, "use_parallel_residual": False}),
    "granitemoe": (
        "granitemoe",
        {
            **MIXED,
            "num_local_experts": 6,
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.25,
            "residual_multiplier": 0.22,
            "logits_scaling": 4.0,
        },
    ),
}
"""Name -> family and settings."""


def make_model(name: str, seed: int = 0) -> Any:
    """Make a tiny random model of transformers, in float32."""
    import transformers

    family, settings = MODELS[name]
    config = transformers.AutoConfig.for_model(family, **{**COMMON, **settings})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():  # weights of training size, so that every part matters
            if value.ndim > 1:
                value.normal_(std=value.shape[-1] ** -0.5 if "embed" not in key else 0.5)
            elif key.endswith("bias"):
                value.normal_(std=0.3)
            else:
                value.add_(torch.randn_like(value) * 0.2)
    return model


def byte_tokenizer() -> Tokenizer:
    """Make a tokenizer with a token for each byte and one special token."""
    tokenizer = Tokenizer(models.BPE(vocab={char: byte for byte, char in enumerate(byte_characters())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_end|>"])
    return tokenizer


def write_folder(
    folder: Path, name: str = "llama", *, model: Any = None, dtype: torch.dtype = torch.float32, shards: str = "5GB"
) -> Any:
    """Write the folder of a tiny model, and return the model as transformers has it, in float32."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    if name == "deepseek":
        from .deepseek_moe import write_deepseek

        model = write_deepseek(folder)
    else:
        from transformers import AutoModelForCausalLM

        model = model or make_model(name)
        model.to(dtype).save_pretrained(folder, max_shard_size=shards)
        if dtype != torch.float32:  # read again: `to` has also rounded the frequencies of the positions
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    write_tokenizer(folder)
    return model


def write_tokenizer(folder: Path) -> None:
    """Write the files of the tokenizer."""
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))


def random_ids(length: int, seed: int = 0) -> torch.Tensor:
    """Draw ids (1, length)."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (1, length)))
