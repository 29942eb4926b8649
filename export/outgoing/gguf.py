"""Write a run as a GGUF file, for llama.cpp."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...contract.errors import UserError
from ...contract.files import cannot_write, temporary_name
from ...train.model import ModelConfig
from ...train.run.checkpoints.checkpoint import Checkpoint
from ..run.files import read_files
from .gguf_family import experts_used, family_of
from .gguf_tensors import Outgoing, State, tensors_of
from .gguf_vocabulary import Vocabulary, vocabulary_of

ENDS = ("add_eos_token_id", "add_eot_token_id", "add_eom_token_id")
"""Writers of the ends of texts, in the order in which they are taken."""


def write(checkpoint: Checkpoint, out: Path, log: Callable[[str], None]) -> None:
    """Write a checkpoint as one GGUF file.

    Raises:
        UserError: llama.cpp has no such model, a file of its run is damaged, or the file cannot be written. Nothing is
            written then.
    """
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give the name of a file, such as {out / 'model.gguf'}")
    config, run = checkpoint.config.model, checkpoint.run
    family_of(config)  # before the tokenizer, whose message matters less
    files = read_files(run, config.vocab_size)
    vocabulary = vocabulary_of(files.tokenizer_json, config.vocab_size, files.generation, files.chat_template)
    log(f"writing {out} from {checkpoint.path}")
    write_gguf(out, config, checkpoint.model_state, vocabulary, name=run.resolve().name)
    log(f"run it: llama-cli -m {out}, or quantise it: llama-quantize {out} Q8_0")


def write_gguf(
    path: Path, config: ModelConfig, state: State, vocabulary: Vocabulary | None, *, name: str = "model"
) -> None:
    """Write a model.

    Args:
        path: The file, which is replaced if it exists.
        config: The config of the model.
        state: Its parameters by our names.
        vocabulary: Its tokens; None writes none, so that it takes ids only.
        name: What the file calls it.

    Raises:
        UserError: llama.cpp has no such model, or the file cannot be written; an earlier file is unchanged then.
    """
    import gguf

    family = family_of(config)
    tensors = list(tensors_of(config, state, family))
    temporary = temporary_name(path)
    writer = gguf.GGUFWriter(temporary, family.name)
    _add_model(writer, config, name, {tensor.dtype for tensor in tensors})
    if vocabulary is None:
        writer.add_tokenizer_model("no_vocab")
        writer.add_vocab_size(config.vocab_size)
    else:
        _add_vocabulary(writer, vocabulary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(writer, tensors)
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error, "Nothing was written") from error
    finally:
        temporary.unlink(missing_ok=True)


def _add_model(writer: Any, config: ModelConfig, name: str, dtypes: Iterable[torch.dtype]) -> None:
    """Add the metadata of the model."""
    import gguf

    width, ffn = config.resolved_head_dim, config.ffn
    (rope,) = config.ropes
    scaling = rope.scaling
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    halves = {torch.float16: gguf.LlamaFileType.MOSTLY_F16, torch.bfloat16: gguf.LlamaFileType.MOSTLY_BF16}
    writer.add_file_type(next((halves[dtype] for dtype in dtypes if dtype in halves), gguf.LlamaFileType.ALL_F32))
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(rope.theta)
    writer.add_rope_dimension_count(width)
    if scaling.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling.factor)
    elif scaling.kind == "yarn":
        import math

        from ...train.model.attention.rope import attention_factor

        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling.factor)
        writer.add_rope_scaling_orig_ctx_len(scaling.original_context)
        writer.add_rope_scaling_yarn_beta_fast(scaling.beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(scaling.beta_slow)
        # llama.cpp multiplies its own factor, which is that of the paper.
        writer.add_rope_scaling_attn_factors(attention_factor(scaling) / (0.1 * math.log(scaling.factor or 1.0) + 1))
    if ffn.routing == "dense":
        writer.add_feed_forward_length(ffn.dim)
        return
    writer.add_feed_forward_length(ffn.expert_dim)
    writer.add_expert_feed_forward_length(ffn.expert_dim)
    writer.add_expert_count(ffn.num_experts)
    writer.add_expert_used_count(experts_used(config))


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Add tokens, merges, special tokens and the chat template."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    writer.add_string("tokenizer.huggingface.json", vocabulary.tokenizer_json)
    generation = vocabulary.generation
    for add, number in zip(ENDS, generation.eos_ids, strict=False):
        getattr(writer, add)(number)
    if generation.bos_id is not None:
        writer.add_bos_token_id(generation.bos_id)
    writer.add_add_bos_token(generation.add_bos)
    if vocabulary.template is not None:
        writer.add_chat_template(vocabulary.template)


def _write(writer: Any, tensors: list[Outgoing]) -> None:
    """Write the file, one tensor in memory at a time."""
    import gguf
    import numpy as np

    for name, shape, dtype, _ in tensors:
        if dtype == torch.bfloat16:
            bytes_shape = (*shape[:-1], shape[-1] * 2)
            size = int(np.prod(bytes_shape))
            writer.add_tensor_info(name, bytes_shape, np.dtype(np.uint8), size, gguf.GGMLQuantizationType.BF16)
        else:
            kind = np.dtype(np.float16 if dtype == torch.float16 else np.float32)
            writer.add_tensor_info(name, shape, kind, int(np.prod(shape)) * kind.itemsize)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(_array(tensor.read().detach()))
    finally:
        writer.close()


def _array(tensor: Tensor) -> Any:
    """Return the values as numpy has them: bfloat16 as bytes, other half precision as it is, all else in float32."""
    tensor = tensor.contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint8).numpy()
    return (tensor if tensor.dtype == torch.float16 else tensor.float()).numpy()
