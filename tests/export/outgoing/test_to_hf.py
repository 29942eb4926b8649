"""A run that goes out as a Hugging Face folder computes the same in transformers; other runs say why they cannot."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from support.cases import each
from support.foreign.folders import LENGTH, byte_tokenizer, random_ids, write_folder

from adaptive_lm.contract.errors import UserError
from adaptive_lm.contract.generation_settings import GenerationSettings
from adaptive_lm.export.outgoing.formats import export_to
from adaptive_lm.export.outgoing.hf_family import outgoing
from adaptive_lm.serve.cli import group
from adaptive_lm.train.importing.importer import read_foreign
from adaptive_lm.train.importing.run_writer import Heldout, write_run
from adaptive_lm.train.importing.source import ForeignModel, Provenance
from adaptive_lm.train.model import ModelConfig, Transformer
from adaptive_lm.train.run.checkpoints.tensor_file import LazyTensor
from adaptive_lm.train.run.folder import Run

SHAPE: dict[str, Any] = {
    "vocab_size": 300, "context_length": 96, "dim": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2,
}  # fmt: skip
DENSE = {"routing": "dense", "dim": 48}
TOP_K = {"routing": "top_k", "num_experts": 6, "experts_per_token": 2, "expert_dim": 24}
YARN = {"theta": 10_000.0, "scaling": {"kind": "yarn", "factor": 4.0, "original_context": 24}}
LLAMA3 = {"theta": 5e5, "scaling": {"kind": "llama3", "factor": 4.0, "original_context": 24}}
PLAIN = {"qk_norm": "none"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "trained here": ("qwen3", {"ffn": DENSE, "tie_embeddings": True}),
    "trained here with windows": ("qwen3", {"ffn": DENSE, "attention": {"window": [0, 9, 9]}}),
    "trained here with experts": ("qwen3_moe", {"ffn": {**TOP_K, "dense_layers": [1], "dim": 40}}),
    "experts not renormalised": ("qwen3_moe", {"ffn": {**TOP_K, "renormalize": False}}),
    "llama": ("llama", {"ffn": {**DENSE, "bias": True}, "attention": {**PLAIN, "rope": LLAMA3}, "head_dim": 16}),
    "llama with biases": ("llama", {"ffn": DENSE, "attention": {**PLAIN, "qkv_bias": True, "o_bias": True}}),
    "qwen2": ("qwen2", {"ffn": DENSE, "attention": {**PLAIN, "qkv_bias": True, "rope": YARN}}),
    "mistral": ("mistral", {"ffn": DENSE, "attention": {**PLAIN, "window": 7}}),
    "mixtral": ("mixtral", {"ffn": TOP_K, "attention": PLAIN}),
    "mixtral with a dial": (
        "mixtral",
        {
            "ffn": {
                **TOP_K, "routing": "top_p", "controller": "fixed", "router_top_p": 1.0, "most_experts": 2,
            },
            "attention": PLAIN,
        },
    ),
}  # fmt: skip


def quiet(_what: str, _done: int, _total: int) -> None:
    pass


def run_of(config: ModelConfig, folder: Path) -> tuple[Run, Transformer]:
    """Write the run of a random model, and return both."""
    torch.manual_seed(0)
    model = Transformer(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(1.0 if "norm" in name else 0.0, 0.3)
    tensors = {
        name: LazyTensor(tuple(value.shape), value.dtype, lambda value=value: value.detach())  # type: ignore[misc]
        for name, value in model.named_parameters()
    }
    foreign = ForeignModel(
        config,
        tensors,
        byte_tokenizer().to_str(),
        GenerationSettings(eos_ids=(256, 10), bos_id=256, special_tokens={"eos": "<|im_end|>"}, sampling={"top_k": 9}),
        Provenance("x", "huggingface", "x", None, {}),
        {"default": "{{ messages[0].content }}", "tool_use": "tools"},
    )
    run = Run(folder / "run")
    write_run(foreign, run, Heldout("text", "file"), work=quiet)
    return run, model


@pytest.mark.parametrize("case", CASES)
def test_the_logits_in_transformers_are_ours(case: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    family, fields = CASES[case]
    run, ours = run_of(ModelConfig.model_validate({**SHAPE, **fields}), tmp_path)
    out = export_to("hf", str(run.path), tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert theirs.config.model_type == family
    ids = random_ids(4 * LENGTH)
    with torch.no_grad():
        expected, logits = ours(ids).logits, theirs(ids, use_cache=False).logits
    assert float((expected - logits).abs().max() / (expected.max() - expected.min())) < 1e-4


@pytest.mark.parametrize("name", ["llama3", "llama_biased", "mistral", "qwen2_window", "qwen3", "mixtral", "qwen3_moe"])
def test_a_model_that_comes_in_and_goes_out_again_has_equal_tensors(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write_folder(tmp_path / "in", name, dtype=torch.bfloat16)
    run = Run(tmp_path / "run")
    write_run(read_foreign(tmp_path / "in", quiet), run, Heldout("text", "file"), work=quiet)
    out = export_to("hf", str(run.path), tmp_path / "out")
    before, after = load_file(tmp_path / "in" / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key].view(torch.int16), after[key].view(torch.int16)) for key in before)
    assert read_foreign(out, quiet).config == read_foreign(tmp_path / "in", quiet).config


def test_the_tokenizer_ends_and_templates_go_out_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    run, _ = run_of(ModelConfig.model_validate({**SHAPE, "ffn": DENSE}), tmp_path)
    out = export_to("hf", str(run.path), tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.eos_token_id == 256
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 256, "eos_token_id": [256, 10], "do_sample": True, "top_k": 9}
    assert read_foreign(out, quiet).templates["tool_use"] == "tools"


@each(
    ("fields", "feature"),
    [
        ({"ffn": {"routing": "top_p", "num_experts": 4}}, "a number of experts that varies by token"),
        ({"ffn": {**TOP_K, "shared_expert_dim": 8}}, "a shared expert"),
        ({"ffn": {**TOP_K, "score": "sigmoid"}}, "scores of experts other than softmax"),
        ({"ffn": {**TOP_K, "bias": True}}, "biases in its experts"),
        ({"ffn": {**TOP_K, "renormalize": False}, "attention": PLAIN}, "weights that are not renormalised"),
        ({"ffn": {**DENSE, "activation": "gelu"}}, "an activation other than silu"),
        ({"ffn": {**DENSE, "gated": False}}, "a feed-forward part without a gate"),
        ({"ffn": {**DENSE, "dim": [8, 9, 8]}}, "feed-forward widths that differ by layer"),
        ({"ffn": DENSE, "depth": {"layers_share": 0.5}}, "layers that tokens skip"),
        ({"ffn": DENSE, "depth": {"exit_layers": [1]}}, "early exits"),
        ({"ffn": DENSE, "heads": {"routing": "top_p"}}, "heads that tokens choose"),
        ({"ffn": DENSE, "attention": {"positions": "cope"}}, "contextual, learned or no positions"),
        ({"ffn": DENSE, "attention": {"window": 20, "window_kind": "length"}}, "windows that adapt"),
        ({"ffn": DENSE, "attention": {"window": [0, 8, 9]}}, "windows of several lengths"),
        ({"ffn": DENSE, "attention": {"rope": {"share": 0.5}}}, "heads that are rotated in part"),
        ({"ffn": DENSE, "attention": {"rope": [{"theta": 5}, {}, {}]}}, "rotary positions that differ by layer"),
        ({"ffn": DENSE, "attention": {"qk_norm": "full"}}, "QK-norm over all heads together"),
        ({"ffn": DENSE, "attention": {"softcap": 3}}, "a softcap of scores or logits"),
        ({"ffn": DENSE, "attention": {"qkv_bias": True}}, "QK-norm and biases of one projection"),
        ({"ffn": DENSE, "attention": {**PLAIN, "window": [0, 8, 8]}}, "windows in some layers"),
        ({"ffn": DENSE, "norm": "layer"}, "LayerNorm"),
        ({"ffn": DENSE, "norm_place": "sandwich"}, "norms of outputs"),
        ({"ffn": DENSE, "parallel_residual": True}, "a parallel residual"),
        ({"ffn": DENSE, "embedding_scale": 2}, "a scale of its embedding"),
    ],
)
def test_a_model_of_no_family_is_refused_by_the_feature(fields: dict[str, Any], feature: str) -> None:
    with pytest.raises(UserError, match=f"this model has .*{feature}.*export it as ONNX"):
        outgoing(ModelConfig.model_validate({**SHAPE, **fields}))


def test_nothing_is_written_over_another_folder(tmp_path: Path) -> None:
    run, _ = run_of(ModelConfig.model_validate({**SHAPE, "ffn": DENSE}), tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UserError, match="exists already; choose another --out"):
        export_to("hf", str(run.path), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_refused_model_leaves_nothing_behind(tmp_path: Path) -> None:
    run, _ = run_of(ModelConfig.model_validate({**SHAPE, "ffn": {**DENSE, "activation": "relu"}}), tmp_path)
    with pytest.raises(UserError, match="an activation other than silu"):
        export_to("hf", str(run.path), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_the_command_prints_the_folder(tmp_path: Path) -> None:
    run, _ = run_of(ModelConfig.model_validate({**SHAPE, "ffn": DENSE}), tmp_path)
    out = tmp_path / "out"
    result = CliRunner().invoke(group, ["export", str(run.path), "--to", "hf", "--out", str(out)])
    assert result.exit_code == 0
    assert result.stdout == f"{out}\n"
    assert "as a model of the family qwen3" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "hf"], "add --out PATH"),
        (["--to", "hf", "--out", "x", "--quantize", "int8"], "--quantize is for ONNX"),
    ],
)
def test_options_that_do_not_fit_are_wrong_usage(options: list[str], message: str) -> None:
    result = CliRunner().invoke(group, ["export", "run", *options])
    assert result.exit_code == 2
    assert message in result.stderr
