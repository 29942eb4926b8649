"""Logits of llama.cpp, the judge of GGUF files, through its C API."""

import ctypes
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

CHUNK = 512


@functools.cache
def silenced() -> tuple[Any, Any]:
    """Return llama.cpp with its log switched off, and the callback, which has to live as long as it."""
    api: Any = pytest.importorskip("llama_cpp", reason="llama.cpp is not installed: pip install llama-cpp-python")
    callback = api.llama_log_callback(lambda *_: None)
    api.llama_log_set(callback, ctypes.c_void_p(0))
    return api, callback


class LlamaCpp:
    """A model in llama.cpp, with keys and values in float32."""

    def __init__(self, path: Path, context: int) -> None:
        self.api, _ = silenced()
        params = self.api.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = self.api.llama_model_load_from_file(os.fsencode(path), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        settings = self.api.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, CHUNK, CHUNK
        settings.n_threads = settings.n_threads_batch = 1
        settings.type_k = settings.type_v = self.api.GGML_TYPE_F32
        settings.flash_attn_type = 0
        self.context = self.api.llama_init_from_model(self.model, settings)
        self.vocabulary = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))

    def close(self) -> None:
        """Free the model."""
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits (T, V) after each of `ids`, a new text."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        return np.concatenate([self._part(ids, start) for start in range(0, len(ids), CHUNK)])

    def _part(self, ids: Sequence[int], start: int) -> NDArray[np.float32]:
        part, batch = ids[start : start + CHUNK], self.api.llama_batch_init(CHUNK, 0, 1)
        batch.n_tokens = len(part)
        for i, token in enumerate(part):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, start + i, 1, 1
            batch.seq_id[i][0] = 0
        status = self.api.llama_decode(self.context, batch)
        self.api.llama_batch_free(batch)
        assert status == 0, status
        rows = [self.api.llama_get_logits_ith(self.context, i) for i in range(len(part))]
        return np.stack([np.ctypeslib.as_array(row, shape=(self.vocabulary,)).copy() for row in rows])

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Return the ids of a text, without a token at its beginning."""
        data = text.encode()
        ids = (self.api.llama_token * (len(data) + 8))()
        vocab = self.api.llama_model_get_vocab(self.model)
        count = self.api.llama_tokenize(vocab, data, len(data), ids, len(ids), False, specials)
        return list(ids[:count])
