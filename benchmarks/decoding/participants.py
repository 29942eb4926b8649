"""The participants of the decode benchmark on one interface: our runtime, llama.cpp, ONNX Runtime GenAI, transformers.

A participant holds B sequences. `begin` reads the prompt in all of them, `step` computes one more token of each, and
`logits` returns what the last of them predicts. T tokens, V vocabulary.
"""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from adaptive_lm.runtime.dial import Thresholds
from adaptive_lm.runtime.execution.session import Session
from adaptive_lm.runtime.execution.step import Step, Work
from models.gguf_file import architecture, silence
from models.random_weights import VOCABULARY, Size, config_of

Floats = NDArray[np.float32]
CHUNK = 512
"""Most tokens of a prompt that llama.cpp computes in one pass; its own default."""

PACKAGES = {"llama.cpp": "llama_cpp", "genai": "onnxruntime_genai", "transformers": "transformers"}
"""The package that each peer needs."""
INSTALL = {
    "llama.cpp": "CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python gguf",
    "genai": "pip install --no-deps onnxruntime-genai onnx-ir ml-dtypes",  # it would bring a second onnxruntime
    "transformers": "pip install transformers",
}


def missing() -> dict[str, str]:
    """Return, for each peer that is not installed, the command that installs it."""
    return {name: INSTALL[name] for name, package in PACKAGES.items() if importlib.util.find_spec(package) is None}


class Participant(Protocol):
    """An open model with room for a number of tokens."""

    def begin(self, ids: Sequence[int]) -> None:
        """Start new sequences, and read `ids` in each."""

    def step(self, token: int) -> None:
        """Compute one token in each sequence."""

    def logits(self) -> Floats:
        """Return the logits (V,) after the last token."""

    def close(self) -> None:
        """Free the memory."""


class Ours:
    """A session of our runtime, for B sequences."""

    def __init__(
        self, folder: Path, target: str, threads: int, capacity: int, thresholds: Thresholds, batch: int = 1
    ) -> None:
        self.folder = folder
        self.session = Session(folder, device="cpu", target=target, threads=threads, verify=False)
        self.batch = self.session.batch(batch, capacity)
        self.sequences = [self.batch.join(thresholds) for _ in range(batch)]
        self.last: Step | None = None

    def begin(self, ids: Sequence[int]) -> None:
        """Start new sequences with `ids`."""
        for sequence in self.sequences:
            sequence.rewind(0)
            self.last = sequence.prefill(ids)

    def step(self, token: int) -> None:
        """Compute one token in each sequence, a different one in each."""
        work = [
            Work(one, ((token + 1009 * row) % VOCABULARY if row else token,)) for row, one in enumerate(self.sequences)
        ]
        *_, self.last = self.batch.run(work)

    def logits(self) -> Floats:
        """Return the logits (V,) after the last token."""
        assert self.last is not None
        result: Floats = self.last.logits[-1]
        return result

    def bytes_per_token(self) -> float:
        """Return the bytes of weights and cache that the last token needed, by the manifest."""
        assert self.last is not None
        return self.last.usage.executed_bytes

    def close(self) -> None:
        """Free the session."""
        del self.session, self.batch, self.sequences, self.last


class LlamaCpp:
    """A context of llama.cpp with B sequences, through its C API: without the Python of its class Llama."""

    def __init__(self, path: Path, size: Size, experts: int, threads: int, capacity: int, batch: int = 1) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        silence()
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        overrides = (llama_cpp.llama_model_kv_override * 2)()  # ends with an empty key
        if size.experts > 1:
            overrides[0].key = f"{architecture(config_of(size).model)}.expert_used_count".encode()
            overrides[0].tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT
            value: Any = overrides[0].value  # a union, whose type in the library depends on its version
            value.val_i64 = experts
            model_params.kv_overrides = overrides
        self.model: Any = llama_cpp.llama_model_load_from_file(os.fsencode(path), model_params)
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = capacity * batch
        params.n_batch = params.n_ubatch = CHUNK
        params.n_threads = params.n_threads_batch = threads
        params.n_seq_max = batch
        params.no_perf = True
        self.context: Any = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp makes no context for {path}")
        self.memory: Any = llama_cpp.llama_get_memory(self.context)
        self.tokens: Any = llama_cpp.llama_batch_init(max(CHUNK, batch), 0, 1)
        self.batch = batch
        self.position = 0

    def begin(self, ids: Sequence[int]) -> None:
        """Start new sequences with `ids`: read once, and copied to the other sequences."""
        self.api.llama_memory_clear(self.memory, False)
        for start in range(0, len(ids), CHUNK):
            part = ids[start : start + CHUNK]
            last = start + len(part) == len(ids)
            self._run([(token, start + i, 0, last and i == len(part) - 1) for i, token in enumerate(part)])
        for sequence in range(1, self.batch):
            self.api.llama_memory_seq_cp(self.memory, 0, sequence, -1, -1)
        self.position = len(ids)

    def step(self, token: int) -> None:
        """Compute one token in each sequence, a different one in each."""
        self._run([((token + 1009 * row) % VOCABULARY, self.position, row, True) for row in range(self.batch)])
        self.position += 1

    def _run(self, tokens: list[tuple[int, int, int, bool]]) -> None:
        batch = self.tokens
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        status = self.api.llama_decode(self.context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        self.row = self.api.llama_get_logits_ith(self.context, -1)  # waits for the result

    def logits(self) -> Floats:
        """Return the logits (V,) after the last token of the last sequence."""
        return np.ctypeslib.as_array(self.row, shape=(VOCABULARY,)).copy()

    def close(self) -> None:
        """Free model and context."""
        self.api.llama_batch_free(self.tokens)
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)


class GenAI:
    """A generator of ONNX Runtime GenAI; the tokens are given, so that it samples none."""

    def __init__(self, folder: Path, threads: int, capacity: int) -> None:
        import onnxruntime_genai

        self.api: Any = onnxruntime_genai
        config = self.api.Config(str(folder))
        config.overlay(f'{{"model": {{"decoder": {{"session_options": {{"intra_op_num_threads": {threads}}}}}}}}}')
        self.model: Any = self.api.Model(config)
        self.capacity = capacity
        self.generator: Any = None

    def begin(self, ids: Sequence[int]) -> None:
        """Start a new sequence with `ids`."""
        params = self.api.GeneratorParams(self.model)
        params.set_search_options(max_length=self.capacity, do_sample=False)
        self.generator = self.api.Generator(self.model, params)
        self.generator.append_tokens(np.array([ids], np.int32))

    def step(self, token: int) -> None:
        """Compute one token."""
        self.generator.append_tokens(np.array([[token]], np.int32))

    def logits(self) -> Floats:
        """Return the logits (V,) after the last token."""
        result: Floats = self.generator.get_logits().reshape(-1, VOCABULARY)[-1].astype(np.float32)
        return result

    def close(self) -> None:
        """Free the model."""
        del self.generator, self.model


class Transformers:
    """A model of the transformers library, run eagerly with its own cache, as its `generate` does."""

    def __init__(self, folder: Path, experts: int, threads: int, batch: int = 1) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        options: dict[str, Any] = {"num_experts_per_tok": experts} if experts > 1 else {}
        load: Any = AutoModelForCausalLM.from_pretrained  # untyped in some releases, typed in others
        self.model = load(folder, dtype=torch.float32, **options).eval()
        self.batch = batch
        self.out: Any = None

    @torch.inference_mode()
    def begin(self, ids: Sequence[int]) -> None:
        """Start new sequences with `ids`."""
        self.out = self.model(input_ids=torch.tensor([list(ids)] * self.batch), use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def step(self, token: int) -> None:
        """Compute one token in each sequence, a different one in each."""
        tokens = torch.tensor([[(token + 1009 * row) % VOCABULARY] for row in range(self.batch)])
        cache = self.out.past_key_values
        self.out = self.model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def logits(self) -> Floats:
        """Return the logits (V,) after the last token of the last sequence."""
        result: Floats = self.out.logits[-1, -1].numpy()
        return result

    def close(self) -> None:
        """Free the model."""
        del self.model, self.out
