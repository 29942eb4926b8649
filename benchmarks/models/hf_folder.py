"""Our models as folders of the transformers library, and as ONNX Runtime GenAI builds them from those.

transformers has our form as Qwen3 and Qwen3-MoE, with the same weights. GenAI builds Qwen3, but no mixture of experts
of that form: the nearest that it builds is LFM2-MoE with attention in all layers, whose router has a sigmoid in place
of the softmax. Its weights and its work are the same, and with routers near zero its logits nearly so.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptive_lm.train.model import ModelConfig, Transformer
from models.random_weights import DEFAULT_EXPERTS, Precision

LFM2_NAMES = {
    "model.norm.": "model.embedding_norm.",
    ".input_layernorm.": ".operator_norm.",
    ".post_attention_layernorm.": ".ffn_norm.",
    ".self_attn.o_proj.": ".self_attn.out_proj.",
    ".self_attn.q_norm.": ".self_attn.q_layernorm.",
    ".self_attn.k_norm.": ".self_attn.k_layernorm.",
    ".mlp.": ".feed_forward.",
}
"""Parts of the names of Qwen3-MoE, and those of LFM2-MoE in their place."""


def write_hf(folder: Path, model: Transformer, tokenizer_json: str) -> None:
    """Write `model` into `folder` as a Qwen3 or Qwen3-MoE of transformers, in float32."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    config, common = model.config, _common(model.config)
    if config.num_experts > 1:
        other: Any = Qwen3MoeForCausalLM(
            Qwen3MoeConfig(
                **common,
                num_experts=config.num_experts,
                num_experts_per_tok=DEFAULT_EXPERTS,
                moe_intermediate_size=config.ffn.expert_dim,
                norm_topk_prob=True,
            )
        )
    else:
        other = Qwen3ForCausalLM(Qwen3Config(**common, intermediate_size=config.ffn_dim(0)))
    _load(other, weights(model))
    _save(folder, other, tokenizer_json)


def write_lfm2(folder: Path, model: Transformer, tokenizer_json: str) -> None:
    """Write a mixture of experts into `folder` as an LFM2-MoE with attention in all layers, in float32."""
    from transformers import Lfm2MoeConfig, Lfm2MoeForCausalLM

    config, common = model.config, _common(model.config)
    common["norm_eps"] = common.pop("rms_norm_eps")
    del common["head_dim"]  # always hidden_size / num_attention_heads
    other: Any = Lfm2MoeForCausalLM(
        Lfm2MoeConfig(
            **common,
            layer_types=["full_attention"] * config.num_layers,
            num_dense_layers=0,
            num_experts=config.num_experts,
            num_experts_per_tok=DEFAULT_EXPERTS,
            moe_intermediate_size=config.ffn.expert_dim,
            intermediate_size=config.ffn.expert_dim,
            norm_topk_prob=True,
            use_expert_bias=False,
        )
    )
    renamed = {}
    for name, value in weights(model).items():
        for part, other_part in LFM2_NAMES.items():
            name = name.replace(part, other_part)
        renamed[name] = value
    _load(other, renamed)
    _save(folder, other, tokenizer_json)


def weights(model: Transformer) -> dict[str, Tensor]:
    """Return the weights under their names in transformers."""
    state = dict(model.state_dict())
    named = {"model.embed_tokens.weight": state["embedding.weight"], "model.norm.weight": state["norm.weight"]}
    named["lm_head.weight"] = state["head.weight"]
    for i in range(model.config.num_layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        key, value = state[f"{ours}.attention.kv.weight"].chunk(2)
        named |= {
            f"{theirs}.input_layernorm.weight": state[f"{ours}.attention_norm.weight"],
            f"{theirs}.post_attention_layernorm.weight": state[f"{ours}.ffn_norm.weight"],
            f"{theirs}.self_attn.q_proj.weight": state[f"{ours}.attention.q.weight"],
            f"{theirs}.self_attn.k_proj.weight": key,
            f"{theirs}.self_attn.v_proj.weight": value,
            f"{theirs}.self_attn.o_proj.weight": state[f"{ours}.attention.o.weight"],
            f"{theirs}.self_attn.q_norm.weight": state[f"{ours}.attention.q_norm.weight"],
            f"{theirs}.self_attn.k_norm.weight": state[f"{ours}.attention.k_norm.weight"],
        }
        if f"{ours}.moe.router.weight" in state:
            named |= {
                f"{theirs}.mlp.gate.weight": state[f"{ours}.moe.router.weight"],
                f"{theirs}.mlp.experts.gate_up_proj": state[f"{ours}.moe.gate_up"].transpose(1, 2),
                f"{theirs}.mlp.experts.down_proj": state[f"{ours}.moe.down"].transpose(1, 2),
            }
        else:
            gate, up = state[f"{ours}.ffn.gate_up.weight"].chunk(2)
            named |= {
                f"{theirs}.mlp.gate_proj.weight": gate,
                f"{theirs}.mlp.up_proj.weight": up,
                f"{theirs}.mlp.down_proj.weight": state[f"{ours}.ffn.down.weight"],
            }
    return named


def _common(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.resolved_head_dim,
        "max_position_embeddings": config.context_length,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.ropes[0].theta},
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


@torch.no_grad()
def _load(other: Any, named: dict[str, Tensor]) -> None:
    own = dict(other.named_parameters(remove_duplicate=False))
    if own.keys() != named.keys():
        odd = sorted(own.keys() ^ named.keys())[:6]
        raise RuntimeError(f"this version of transformers has other names of weights: {', '.join(odd)}")
    for name, parameter in own.items():
        parameter.copy_(named[name])


def _save(folder: Path, other: Any, tokenizer_json: str) -> None:
    from transformers import PreTrainedTokenizerFast

    writing = folder.with_name(f".{folder.name}.writing-{os.getpid()}")
    other.save_pretrained(writing)
    file = writing / "own_tokenizer.json"
    file.write_text(tokenizer_json, encoding="utf-8")
    untyped: Any = PreTrainedTokenizerFast
    untyped(tokenizer_file=str(file)).save_pretrained(writing)
    shutil.rmtree(folder, ignore_errors=True)
    writing.replace(folder)


def build_genai(source: Path, folder: Path, precision: Precision) -> None:
    """Build the model of the transformers folder `source` with GenAI's own builder.

    Raises:
        RuntimeError: The builder failed; the message ends with its output.
    """
    writing = folder.with_name(f".{folder.name}.writing-{os.getpid()}")
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(writing)]
    command += ["-p", precision, "-e", "cpu", "-c", str(writing.with_suffix(".cache"))]
    done = subprocess.run(command, capture_output=True, text=True)
    shutil.rmtree(writing.with_suffix(".cache"), ignore_errors=True)
    if done.returncode:
        shutil.rmtree(writing, ignore_errors=True)
        raise RuntimeError(f"GenAI's builder failed: {done.stderr[-2000:]}")
    shutil.rmtree(folder, ignore_errors=True)
    writing.replace(folder)
