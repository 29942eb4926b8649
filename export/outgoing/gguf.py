"""Write a run as a GGUF file, for llama.cpp."""

import errno
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...contract.errors import UserError
from ...contract.file_names import CHAT_TEMPLATE, GENERATION, TOKENIZER
from ...contract.files import cannot_write, temporary_name
from ...contract.generation_settings import GenerationSettings
from ...train.data.tokenizers.ids import eos_id
from ...train.data.tokenizers.tokenizer_json import parse_tokenizer
from ...train.model import ModelConfig
from ...train.run.checkpoints.checkpoint import load_checkpoint
from ...train.run.find import find
from .gguf_family import experts_used, family_of
from .gguf_tensors import Outgoing, State, tensors_of
from .gguf_vocabulary import Vocabulary, vocabulary_of

ENDS = ("add_eos_token_id", "add_eot_token_id", "add_eom_token_id")
"""Writers of the ends of texts, in the order in which they are taken."""


def export_gguf(
    name: str | None, out: Path, *, checkpoint: str = "last", log: Callable[[str], None] = lambda line: None
) -> Path:
    """Write a run or checkpoint as one GGUF file, and return its path.

    Args:
        name: Name or path of a run, or path of a checkpoint; None takes the newest run.
        out: File to write.
        checkpoint: Which checkpoint of a run: `best`, `last` or a step.
        log: Called with each line for the user.

    Raises:
        UserError: llama.cpp has no such model, or the file cannot be written. Nothing is written then.
    """
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give the name of a file, such as {out / 'model.gguf'}")
    read = load_checkpoint(find(name, checkpoint))
    config, run = read.config.model, read.run
    family_of(config)  # before the tokenizer, whose message matters less
    vocabulary = vocabulary_of(
        _text(run / TOKENIZER),
        config.vocab_size,
        _generation(run),
        _text(run / CHAT_TEMPLATE) if (run / CHAT_TEMPLATE).exists() else None,
    )
    log(f"writing {out} from {read.path}")
    write_gguf(out, config, read.model_state, vocabulary, name=run.resolve().name)
    log(f"run it: llama-cli -m {out}, or quantise it: llama-quantize {out} Q8_0")
    return out


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


def _generation(run: Path) -> GenerationSettings:
    """Return where texts of a run end; a run that was trained here ends them with its end-of-text token."""
    path = run / GENERATION
    if path.exists():
        return GenerationSettings.from_json(_text(path), str(path))
    return GenerationSettings(eos_ids=(eos_id(parse_tokenizer(_text(run / TOKENIZER), str(run / TOKENIZER))),))


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        missing = isinstance(error, OSError) and error.errno == errno.ENOENT
        raise UserError(
            f"{path}, a file of the run, {'is missing' if missing else f'cannot be read ({error})'}; restore it, or "
            "make the run again"
        ) from None
