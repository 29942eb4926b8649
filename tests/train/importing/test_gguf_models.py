"""Models in GGUF files, compared with llama.cpp and with transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.foreign.gguf_models import CONTEXT, EXPERT_DIM, EXTRAS, LAYERS, USED, VOCABULARY, write_random
from support.foreign.llama_cpp_logits import LlamaCpp

from adaptive_lm.train.importing.gguf.reader import read_gguf
from adaptive_lm.train.importing.gguf.rope import scaling_by_divisors
from adaptive_lm.train.importing.heldout import loaded
from adaptive_lm.train.importing.source import ForeignModel

IDS = np.random.default_rng(5).integers(0, VOCABULARY, CONTEXT).tolist()
HALF_PRECISION_GELU = ("gemma", "gemma2", "gemma3")  # llama.cpp takes GELU from a table in float16
IN_TRANSFORMERS = ("llama", "qwen2")
"""Architectures whose metadata transformers reads as completely as llama.cpp does."""


def read(path: Path) -> ForeignModel:
    return read_gguf(path, lambda *_: None)


def logits_of(path: Path, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = loaded(read(path))(torch.tensor([ids])).logits[0].numpy()
    return logits


@pytest.mark.parametrize("name", EXTRAS)
def test_logits_are_those_of_llama_cpp(name: str, tmp_path: Path) -> None:
    path = write_random(tmp_path / "model.gguf", name)
    llama = LlamaCpp(path, CONTEXT)
    expected = llama.logits(IDS)
    llama.close()
    error = np.abs(logits_of(path, IDS) - expected) / expected.std()
    assert error.max() < (2e-3 if name in HALF_PRECISION_GELU else 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "llama-scaled", "qwen2-yarn", "phi3-long", "gemma3"])
def test_logits_are_those_of_llama_cpp_far_beyond_the_first_context(name: str, tmp_path: Path) -> None:
    path = write_random(tmp_path / "model.gguf", name, context=1024)
    ids = np.random.default_rng(6).integers(0, VOCABULARY, 1024).tolist()
    llama = LlamaCpp(path, 1024)
    expected = llama.logits(ids)
    llama.close()
    error = np.abs(logits_of(path, ids) - expected).max(-1) / expected.std()
    # llama.cpp multiplies up its angles in float32: the error grows with the position, in plain `llama` as much.
    assert error.max() < 1.5e-3
    assert np.median(error) < (1e-3 if name in HALF_PRECISION_GELU else 1e-4)


@pytest.mark.parametrize("name", IN_TRANSFORMERS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate, by which transformers reads GGUF, is not installed")
    path = write_random(tmp_path / "model.gguf", name)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    model.config._attn_implementation = "eager"
    with torch.no_grad():
        expected = model.eval()(torch.tensor([IDS])).logits[0].numpy()
    error = np.abs(logits_of(path, IDS) - expected) / expected.std()
    assert error.max() < 1e-4


def test_a_model_without_rotary_pairs_of_halves_is_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_random(tmp_path / "model.gguf", "llama")
    right = logits_of(path, IDS)
    monkeypatch.setattr("adaptive_lm.train.importing.gguf.parameters.halves_paired", lambda tensor, *_: tensor)
    assert np.abs(logits_of(path, IDS) - right).max() > 0.1 * right.std()


def test_the_divisors_of_llama_3_become_its_scaling(tmp_path: Path) -> None:
    # of Llama 3.1: factor 8, theta 500,000, heads of 128; spot values of the published formula
    waves = 2 * np.pi * 500_000.0 ** (np.arange(64) / 64)
    smooth = (8192 / waves - 1) / 3
    divisors = np.where(waves < 2048, 1, np.where(waves > 8192, 8, 1 / ((1 - smooth) / 8 + smooth)))
    scaling = scaling_by_divisors(divisors.astype(np.float32).tolist(), 500_000.0, 131_072)
    assert (scaling.kind, scaling.factor, scaling.original_context) == ("llama3", 8.0, 8192)
    divisors[40] *= 1.01
    other = scaling_by_divisors(divisors.tolist(), 500_000.0, 131_072)
    assert (other.kind, other.long_factors) == ("longrope", tuple(divisors.tolist()))


def test_what_a_file_says_becomes_the_config(tmp_path: Path) -> None:
    config = read(write_random(tmp_path / "model.gguf", "deepseek")).config
    assert (config.ffn.dense_layers, config.ffn.most_experts, config.ffn.renormalize) == ((0,), USED, False)
    assert (config.ffn.shared_expert_dim, config.ffn.shared_gate, config.norm_eps) == (2 * EXPERT_DIM, False, 1e-5)
    config = read(write_random(tmp_path / "gemma.gguf", "gemma3")).config
    assert [config.window_of(layer) for layer in range(LAYERS)] == [8] * LAYERS
    config = read(write_random(tmp_path / "gemma2.gguf", "gemma2")).config
    assert [config.window_of(layer) for layer in range(LAYERS)] == [8, 0, 8]
