"""Our models as GGUF files, for llama.cpp: the same weights, in f32 or as llama.cpp's own tool quantises them.

Needs the packages gguf and llama-cpp-python.
"""

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

from adaptive_lm.export.outgoing.gguf import write_gguf as write_model
from adaptive_lm.export.outgoing.gguf_family import family_of
from adaptive_lm.train.model import ModelConfig, Transformer
from models.random_weights import DEFAULT_EXPERTS, Precision

NAMES: dict[Precision, str] = {"fp32": "f32", "int8": "q8_0", "int4": "q4_0"}
"""The type of llama.cpp that is nearest to a precision of ours."""
FILE_TYPES = {"q8_0": 7, "q4_0": 2}
"""Of the enumeration llama_ftype."""


def as_top_k(config: ModelConfig) -> ModelConfig:
    """Return the config of the same model with a fixed number of experts, as llama.cpp has it."""
    if config.ffn.routing == "dense":
        return config
    fields = {"controller", "router_top_p", "routing"}
    ffn = {**config.ffn.model_dump(exclude=fields), "routing": "top_k", "experts_per_token": DEFAULT_EXPERTS}
    return ModelConfig.model_validate({**config.model_dump(exclude={"ffn"}), "ffn": ffn})


def architecture(config: ModelConfig) -> str:
    """Return the name of the architecture in GGUF."""
    return family_of(as_top_k(config)).name


def write_gguf(path: Path, model: Transformer) -> None:
    """Write `model`, whose FFN is dense or a mixture of experts with renormalised weights, in f32, without tokens."""
    write_model(path, as_top_k(model.config), model.state_dict(), None)


def quantize(source: Path, path: Path, kind: str, *, again: bool = False) -> None:
    """Quantise the file `source` with llama.cpp itself, into `path`.

    Args:
        source: A file in f32, or with `again` in any type.
        path: The file to write.
        kind: A key of FILE_TYPES.
        again: Whether weights that are quantised already are quantised again.

    Raises:
        RuntimeError: llama.cpp refuses.
    """
    import llama_cpp

    silence()
    params: Any = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = FILE_TYPES[kind], again
    writing = path.with_name(f".{path.name}.writing-{os.getpid()}")
    status = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(writing), params)
    if status:
        raise RuntimeError(f"llama.cpp could not quantise {source} as {kind}: status {status}")
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
