"""Runs as GGUF files: llama.cpp computes the same logits and text, and the import gives the same model back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.foreign.llama_cpp_logits import LlamaCpp
from support.runs import text, write_run
from tokenizers import Tokenizer

from adaptive_lm.contract.errors import UserError
from adaptive_lm.contract.files import temporary_name
from adaptive_lm.export.outgoing.formats import export_to
from adaptive_lm.export.outgoing.gguf_tensors import neighbours_paired
from adaptive_lm.serve.cli import group
from adaptive_lm.train.data.tokenizers.tokenizer_json import parse_tokenizer
from adaptive_lm.train.data.tokenizers.tokenizers import bpe_tokenizer
from adaptive_lm.train.importing.gguf.reader import read_gguf
from adaptive_lm.train.importing.heldout import loaded
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint

DENSE = {"ffn": {"routing": "dense", "dim": 48}, "depth": {}}
TOP_2 = {"ffn": {"routing": "top_k", "num_experts": 8, "expert_dim": 32, "experts_per_token": 2}, "depth": {}}
CAPPED = {
    "ffn": {
        "num_experts": 8, "expert_dim": 32, "most_experts": 3, "experts_per_token": 3, "controller": "fixed",
        "router_top_p": 1.0,
    },
    "depth": {},
}  # fmt: skip
LLAMA = {"attention": {"qk_norm": "none"}}
LLAMA3 = {"kind": "llama3", "factor": 4.0, "original_context": 64}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**DENSE, **LLAMA}),
    "llama-tied": ("llama", {**DENSE, **LLAMA, "tie_embeddings": True}),
    "llama-biases": (
        "llama",
        {
            "attention": {"qk_norm": "none", "qkv_bias": True, "o_bias": True},
            "ffn": {"routing": "dense", "dim": 48, "bias": True},
            "depth": {},
        },
    ),
    "llama-3.1": ("llama", {**DENSE, "attention": {"qk_norm": "none", "rope": {"theta": 500.0, "scaling": LLAMA3}}}),
    "qwen3": ("qwen3", DENSE),
    "qwen3-yarn": (
        "qwen3",
        {**DENSE, "attention": {"rope": {"scaling": {"kind": "yarn", "factor": 4.0, "original_context": 64}}}},
    ),
    "mixtral": ("llama", {**TOP_2, **LLAMA}),
    "qwen3moe": ("qwen3moe", TOP_2),
    "qwen3moe-capped": ("qwen3moe", CAPPED),
}
CONTEXT = 256


@pytest.fixture
def bpe_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run with a byte-level vocabulary and the given shape."""

    def write(**model: Any) -> Path:
        tokenizer = parse_tokenizer(bpe_tokenizer(iter([text(300)] * 3), 320).to_str(), "tokenizer.json")
        size = tokenizer.get_vocab_size() + 3
        run = write_run(tmp_path / "runs" / "tiny", tokenizer="bytes", vocab_size=size, context_length=CONTEXT, **model)
        (run / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        return run

    return write


def model_of(run: Path) -> Transformer:
    checkpoint = load_checkpoint(run)
    model = Transformer(checkpoint.config.model)
    model.load_state_dict(checkpoint.model_state)
    return model.eval()


def continued(logits: Callable[[list[int]], np.ndarray], ids: list[int], count: int) -> list[int]:
    for _ in range(count):
        ids = [*ids, int(logits(ids)[-1].argmax())]
    return ids


@pytest.mark.parametrize("shape", SHAPES)
def test_llama_cpp_computes_the_same_logits_and_text(shape: str, bpe_run: Callable[..., Path], tmp_path: Path) -> None:
    architecture, fields = SHAPES[shape]
    run = bpe_run(**fields)
    path = export_to("gguf", str(run), tmp_path / "model.gguf")
    assert gguf.GGUFReader(path).fields["general.architecture"].contents() == architecture
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    llama, model = LlamaCpp(path, CONTEXT), model_of(run)

    def ours(ids: list[int]) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(model(torch.tensor([ids])).logits[0])

    prompt = text(3, seed=9)
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    assert llama.encode(prompt) == ids
    expected = ours(ids)
    assert np.abs(llama.logits(ids) - expected).max() < 1e-4 * expected.std() + 1e-4
    assert continued(llama.logits, ids[:8], 60) == continued(ours, ids[:8], 60)
    llama.close()


@pytest.mark.parametrize("shape", SHAPES)
def test_an_import_gives_the_same_model_back(shape: str, bpe_run: Callable[..., Path], tmp_path: Path) -> None:
    run = bpe_run(**SHAPES[shape][1])
    foreign = read_gguf(export_to("gguf", str(run), tmp_path / "model.gguf"), lambda *_: None)
    state = load_checkpoint(run).model_state
    for name, tensor in foreign.tensors.items():
        assert torch.equal(tensor.read(), state[name]), name
    assert foreign.tokenizer == (run / "tokenizer.json").read_text(encoding="utf-8")
    ids = torch.randint(0, 300, (1, CONTEXT), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = model_of(run)(ids).logits
        torch.testing.assert_close(loaded(foreign)(ids).logits, own, atol=2e-5 * float(own.std()), rtol=0)


def test_a_run_of_bytes_has_a_vocabulary_of_llama_cpp(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "tiny", tokenizer="bytes", **DENSE)
    path = export_to("gguf", str(run), tmp_path / "model.gguf")
    llama = LlamaCpp(path, CONTEXT)
    assert llama.encode("añ 🙂\n") == list("añ 🙂\n".encode())
    llama.close()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "experts by mass": ({"depth": {}}, "a number of experts that differs by token"),
    "depth": ({"ffn": DENSE["ffn"], "depth": {"layers_share": 0.5}}, "depth routers"),
    "exits": ({"ffn": DENSE["ffn"], "depth": {"exit_layers": [0]}}, "early exits"),
    "heads": ({**DENSE, "heads": {"routing": "top_k"}}, "a choice of heads by token"),
    "window": ({**DENSE, "attention": {"window": 16}}, "windows"),
    "cope": ({**DENSE, "attention": {"positions": "cope"}}, "positions other than rope"),
    "softcap": ({**DENSE, "logits_softcap": 5.0}, "softcaps"),
    "sandwich": ({**DENSE, "norm_place": "sandwich"}, "norms at other places"),
    "layer norm": ({**DENSE, "norm": "layer"}, "LayerNorm"),
    "shared": ({"ffn": {**TOP_2["ffn"], "shared_expert_dim": 8}, "depth": {}}, "a shared expert"),
    "raw weights": ({"ffn": {**TOP_2["ffn"], "renormalize": False}, "depth": {}}, "not divided by their sum"),
    "gelu": ({"ffn": {**DENSE["ffn"], "activation": "gelu"}, "depth": {}}, "another activation"),
    "full norm": ({**DENSE, "attention": {"qk_norm": "full"}}, "a QK-norm over all heads"),
    "biases": ({**DENSE, "attention": {"qkv_bias": True}}, "biases of attention beside QK-norm"),
    "a dial": ({"ffn": {**CAPPED["ffn"], "router_top_p": 0.9}, "depth": {}}, "a number of experts that differs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_feature_that_llama_cpp_lacks_is_named(name: str, tmp_path: Path) -> None:
    fields, feature = REFUSED[name]
    run = write_run(tmp_path / "runs" / "tiny", tokenizer="bytes", **fields)
    with pytest.raises(UserError, match=f"cannot compute this model: it has .*{feature}"):
        export_to("gguf", str(run), tmp_path / "model.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_a_tokenizer_that_llama_cpp_lacks_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "tiny", tokenizer="chars", **DENSE)
    with pytest.raises(UserError, match=r"no tokenizer like this BPE, .* --tokenizer bpe or bytes"):
        export_to("gguf", str(run), tmp_path / "model.gguf")


def test_a_disk_that_refuses_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "runs" / "tiny", tokenizer="bytes", **DENSE)
    path = export_to("gguf", str(run), tmp_path / "model.gguf")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(UserError, match=r"No space left on device\. Nothing was written"):
        export_to("gguf", str(run), path)
    assert path.read_bytes() == before
    assert not temporary_name(path).exists()


def test_the_command_writes_a_file(
    bpe_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bpe_run(**DENSE)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(group, ["export", str(run), "--to", "gguf", "--out", "own.gguf"])
    assert (result.exit_code, result.stdout) == (0, "own.gguf\n")
    assert Path("own.gguf").read_bytes()[:4] == b"GGUF"
    result = CliRunner().invoke(group, ["export", str(run), "--to", "gguf", "--out", str(tmp_path)])
    assert result.exit_code == 1


def test_pairs_of_neighbours_and_of_halves_are_each_others_inverse() -> None:
    from adaptive_lm.train.importing.gguf.parameters import halves_paired
    from adaptive_lm.train.run.checkpoints.tensor_file import LazyTensor

    weight = torch.randn(24, 5)
    turned = neighbours_paired(weight, 8)
    assert torch.equal(turned[1], weight[4])  # of pairs of halves, 0 goes with 4
    assert torch.equal(halves_paired(LazyTensor((24, 5), weight.dtype, lambda: turned), 8, 8).read(), weight)
