"""Tiny random models as GGUF files, one of each architecture, with the tensors that llama.cpp asks for."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from adaptive_lm.contract.byte_table import byte_characters
from adaptive_lm.train.importing.gguf.metadata import Metadata

LAYERS, DIM, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCABULARY, CONTEXT = 3, 64, 4, 2, 16, 96, 272, 64
EXPERTS, USED, EXPERT_DIM, SHARED = 8, 3, 32, 40
Floats = NDArray[np.float32]

# What each architecture has besides what `llama` has. "+x" and "-x" are tensors of a layer.
EXTRAS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-scaled": {"arch": "llama", "rope_freqs": True},
    "mixtral": {"arch": "llama", "experts": True},
    "smollm3": {},
    "granite": {"scales": True},
    "granitemoe": {"scales": True, "experts": True, "shared": True},
    "deepseek": {"experts": True, "shared": True, "dense_lead": 1, "weights_scale": 1.0},
    "qwen2": {"biases": ("attn_q", "attn_k", "attn_v")},
    "qwen2-yarn": {"arch": "qwen2", "biases": ("attn_q", "attn_k", "attn_v"), "yarn": True},
    "qwen2moe": {"biases": ("attn_q", "attn_k", "attn_v"), "experts": True, "shared": True, "shared_gate": True},
    "qwen3": {"qk_norm": "head"},
    "qwen3moe": {"qk_norm": "head", "experts": True},
    "olmo2": {"qk_norm": "full", "norms": ("post_attention_norm", "post_ffw_norm"), "untied": True},
    "olmoe": {"qk_norm": "full", "experts": True, "untied": True},
    "phi3": {"fused": True},
    "phi3-long": {"arch": "phi3", "fused": True, "longrope": True},
    "gemma": {"untied": False},
    "gemma2": {
        "norms": ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"),
        "window": 8,
        "softcaps": True,
    },
    "gemma3": {
        "norms": ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"),
        "window": 8,
        "qk_norm": "head",
    },
}


def write_random(
    path: Path,
    name: str,
    *,
    seed: int = 0,
    context: int = CONTEXT,
    pre: str = "gpt-2",
    vocabulary: Metadata | None = None,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write a random model of the architecture `name` of `EXTRAS`.

    Args:
        path: The file.
        name: Which model.
        seed: Of the weights.
        context: Its context in tokens.
        pre: Name of the pre-tokenizer.
        vocabulary: A vocabulary in place of the small one.
        more: Further metadata.
    """
    extras = EXTRAS[name]
    arch = extras.get("arch", name)
    path.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(context)
    writer.add_embedding_length(DIM)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS if arch == "olmoe" else KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(1000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_feed_forward_length(EXPERT_DIM if arch == "olmoe" else FFN)
    if vocabulary is None:
        add_vocabulary(writer, pre)
    else:
        add(writer, {key: value for key, value in vocabulary.values.items() if key.startswith("tokenizer.")})
        add(writer, {"tokenizer.ggml.eos_token_id": 0})
    add(writer, more or {})
    if extras.get("experts"):
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(USED)
        if arch not in ("llama", "granitemoe"):
            writer.add_expert_feed_forward_length(EXPERT_DIM)
    if extras.get("shared"):
        if arch == "deepseek":
            writer.add_expert_shared_count(2)
            writer.add_leading_dense_block_count(extras["dense_lead"])
            writer.add_expert_weights_scale(extras["weights_scale"])
        else:
            writer.add_expert_shared_feed_forward_length(SHARED)
    if extras.get("scales"):
        writer.add_embedding_scale(3.0)
        writer.add_residual_scale(0.7)
        writer.add_logit_scale(2.5)
        writer.add_attention_scale(0.3)
    if extras.get("softcaps"):
        writer.add_attn_logit_softcapping(2.0)
        writer.add_final_logit_softcapping(3.0)
    if extras.get("window"):
        writer.add_sliding_window(extras["window"])
    if extras.get("yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(context // 4)
    if extras.get("longrope"):
        writer.add_rope_scaling_orig_ctx_len(context // 4)
        writer.add_rope_scaling_attn_factors(1.19)
    size = VOCABULARY if vocabulary is None else len(vocabulary.texts("tokenizer.ggml.tokens"))
    for tensor, values in tensors(name, seed, size):
        writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


MERGES = ("t h", "th e", "i n", "\u0120 the", "a n", "e r")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def add_vocabulary(writer: gguf.GGUFWriter, pre: str = "gpt-2") -> None:
    """Add a byte-level vocabulary: special tokens, bytes, a few merges, and unused tokens up to the embedding."""
    tokens = [*SPECIAL, *byte_characters(), *(merge.replace(" ", "") for merge in MERGES)]
    types = [gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * (len(tokens) - len(SPECIAL))
    unused = VOCABULARY - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens + [f"[PAD{number}]" for number in range(unused)])
    writer.add_token_types(types + [gguf.TokenType.UNUSED] * unused)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")


def add(writer: gguf.GGUFWriter, values: Mapping[str, Any]) -> None:
    """Add metadata by key."""
    for key, value in values.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value if isinstance(value, list) else value.tolist())


def tensors(name: str, seed: int, vocabulary: int) -> Iterator[tuple[str, Floats]]:
    """Yield the tensors of a random model."""
    extras = EXTRAS[name]
    arch = extras.get("arch", name)
    random = np.random.default_rng(seed)

    def draw(*shape: int, scale: float = 1.0) -> Floats:
        return (random.standard_normal(shape) * scale / np.sqrt(shape[-1])).astype(np.float32)

    def norm(width: int) -> Floats:
        return (1 + 0.2 * random.standard_normal(width)).astype(np.float32)

    kv_heads = HEADS if arch == "olmoe" else KV_HEADS
    q_rows, kv_rows = HEADS * HEAD_DIM, kv_heads * HEAD_DIM
    yield "token_embd.weight", draw(vocabulary, DIM, scale=4)
    yield "output_norm.weight", norm(DIM)
    if extras.get("untied", arch not in ("gemma2", "gemma3", "qwen3")):
        yield "output.weight", draw(vocabulary, DIM)
    if extras.get("rope_freqs"):
        yield "rope_freqs.weight", np.linspace(1, 6, HEAD_DIM // 2, dtype=np.float32)
    if extras.get("longrope"):
        yield "rope_factors_short.weight", np.linspace(1, 2, HEAD_DIM // 2, dtype=np.float32)
        yield "rope_factors_long.weight", np.linspace(1, 5, HEAD_DIM // 2, dtype=np.float32)
    for layer in range(LAYERS):
        at = f"blk.{layer}"
        for each in extras.get("norms", ("attn_norm", "ffn_norm")):
            yield f"{at}.{each}.weight", norm(DIM)
        if extras.get("fused"):
            yield f"{at}.attn_qkv.weight", draw(q_rows + 2 * kv_rows, DIM, scale=2)
        else:
            for each, rows in (("attn_q", q_rows), ("attn_k", kv_rows), ("attn_v", kv_rows)):
                yield f"{at}.{each}.weight", draw(rows, DIM, scale=2)
                if each in extras.get("biases", ()):
                    yield f"{at}.{each}.bias", draw(rows, scale=4)
        yield f"{at}.attn_output.weight", draw(DIM, q_rows)
        if extras.get("qk_norm"):
            full = extras["qk_norm"] == "full"
            yield f"{at}.attn_q_norm.weight", norm(q_rows if full else HEAD_DIM)
            yield f"{at}.attn_k_norm.weight", norm(kv_rows if full else HEAD_DIM)
        if extras.get("experts") and layer >= extras.get("dense_lead", 0):
            width = FFN if arch in ("llama", "granitemoe") else EXPERT_DIM
            yield f"{at}.ffn_gate_inp.weight", draw(EXPERTS, DIM, scale=4)
            yield f"{at}.ffn_gate_exps.weight", draw(EXPERTS, width, DIM)
            yield f"{at}.ffn_up_exps.weight", draw(EXPERTS, width, DIM)
            yield f"{at}.ffn_down_exps.weight", draw(EXPERTS, DIM, width, scale=4)
            if extras.get("shared"):
                shared = 2 * EXPERT_DIM if arch == "deepseek" else SHARED
                yield f"{at}.ffn_gate_shexp.weight", draw(shared, DIM)
                yield f"{at}.ffn_up_shexp.weight", draw(shared, DIM)
                yield f"{at}.ffn_down_shexp.weight", draw(DIM, shared)
            if extras.get("shared_gate"):
                yield f"{at}.ffn_gate_inp_shexp.weight", draw(DIM, scale=4)
        else:
            if not extras.get("fused"):
                yield f"{at}.ffn_gate.weight", draw(FFN, DIM)
            yield f"{at}.ffn_up.weight", draw(2 * FFN if extras.get("fused") else FFN, DIM)
            yield f"{at}.ffn_down.weight", draw(DIM, FFN)
