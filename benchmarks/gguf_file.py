"""Our models as GGUF files, for llama.cpp: the same weights, in f32 or as llama.cpp's own tool quantises them.

The architectures are qwen3 and qwen3moe: pre-norm, QK-norm, rotary positions that pair the two halves of a head,
SwiGLU, and experts whose weights are divided by their sum. Needs the packages gguf and llama-cpp-python.
"""

import ctypes
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from decode_models import DEFAULT_EXPERTS, VOCABULARY, Precision
from numpy.typing import NDArray

from adaptive_lm.train.model import Transformer

NAMES: dict[Precision, str] = {"fp32": "f32", "int8": "q8_0", "int4": "q4_0"}
"""The type of llama.cpp that is nearest to a precision of ours."""
FILE_TYPES = {"q8_0": 7, "q4_0": 2}
"""Of the enumeration llama_ftype."""


def architecture(experts: int) -> str:
    """Return the name of the architecture in GGUF."""
    return "qwen3moe" if experts > 1 else "qwen3"


def write_gguf(path: Path, model: Transformer) -> None:
    """Write `model`, whose FFN is dense or a mixture of experts with renormalised weights, in f32."""
    import gguf

    config, experts = model.config, model.config.num_experts
    writing = path.with_name(f".{path.name}.writing-{os.getpid()}")
    writer = gguf.GGUFWriter(writing, architecture(experts))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.resolved_head_dim)
    writer.add_value_length(config.resolved_head_dim)
    writer.add_rope_freq_base(config.ropes[0].theta)
    writer.add_rope_dimension_count(config.resolved_head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_feed_forward_length(config.ffn.expert_dim if experts > 1 else config.ffn.dim)
    if experts > 1:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(DEFAULT_EXPERTS)
        writer.add_expert_feed_forward_length(config.ffn.expert_dim)
    writer.add_tokenizer_model("no_vocab")  # it is given ids only
    writer.add_vocab_size(VOCABULARY)
    for name, array in tensors(model):
        writer.add_tensor(name, np.ascontiguousarray(array, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    writing.replace(path)


def tensors(model: Transformer) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield each tensor under its name in GGUF; matrices are (outputs, inputs), experts (E, outputs, inputs)."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    yield "token_embd.weight", state["embedding.weight"]
    yield "output_norm.weight", state["norm.weight"]
    if not model.config.tie_embeddings:
        yield "output.weight", state["head.weight"]
    for i in range(model.config.num_layers):
        ours, theirs = f"layers.{i}", f"blk.{i}"
        yield f"{theirs}.attn_norm.weight", state[f"{ours}.attention_norm.weight"]
        yield f"{theirs}.ffn_norm.weight", state[f"{ours}.ffn_norm.weight"]
        key, value = np.split(state[f"{ours}.attention.kv.weight"], 2)
        yield f"{theirs}.attn_q.weight", state[f"{ours}.attention.q.weight"]
        yield f"{theirs}.attn_k.weight", key
        yield f"{theirs}.attn_v.weight", value
        yield f"{theirs}.attn_output.weight", state[f"{ours}.attention.o.weight"]
        for norm in ("q_norm", "k_norm"):
            yield f"{theirs}.attn_{norm}.weight", state[f"{ours}.attention.{norm}.weight"]
        if f"{ours}.moe.router.weight" in state:
            gate_up = state[f"{ours}.moe.gate_up"].transpose(0, 2, 1)  # (E, 2F, D)
            gate, up = np.split(gate_up, 2, axis=1)
            yield f"{theirs}.ffn_gate_inp.weight", state[f"{ours}.moe.router.weight"]
            yield f"{theirs}.ffn_gate_exps.weight", gate
            yield f"{theirs}.ffn_up_exps.weight", up
            yield f"{theirs}.ffn_down_exps.weight", state[f"{ours}.moe.down"].transpose(0, 2, 1)
        else:
            gate, up = np.split(state[f"{ours}.ffn.gate_up.weight"], 2)
            yield f"{theirs}.ffn_gate.weight", gate
            yield f"{theirs}.ffn_up.weight", up
            yield f"{theirs}.ffn_down.weight", state[f"{ours}.ffn.down.weight"]


def quantize(source: Path, path: Path, precision: Precision) -> None:
    """Quantise the f32 file `source` with llama.cpp itself, into `path`.

    Raises:
        RuntimeError: llama.cpp refuses.
    """
    import llama_cpp

    silence()
    params: Any = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[NAMES[precision]]
    writing = path.with_name(f".{path.name}.writing-{os.getpid()}")
    status = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(writing), params)
    if status:
        raise RuntimeError(f"llama.cpp could not quantise {source} as {NAMES[precision]}: status {status}")
    writing.replace(path)


@functools.cache
def silence() -> Any:
    """Silence llama.cpp's log; the cache keeps the callback alive."""
    import llama_cpp

    callback = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    return callback


@functools.cache
def bytes_per_token(path: Path, experts_used: int) -> int:
    """Count the bytes of the weights that a token reads from a file, with this number of experts per layer."""
    import gguf

    reader = gguf.GGUFReader(path)
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    total = 0
    for tensor in reader.tensors:
        size = int(tensor.n_bytes)
        if "_exps." in tensor.name:
            size = size * experts_used // int(tensor.shape[-1])
        elif tensor.name == "token_embd.weight" and not tied:
            size //= int(tensor.shape[-1])  # one row
        total += size
    return total
