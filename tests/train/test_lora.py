"""Adapters of frozen weights: training, checkpoints, merging, and the format of peft."""

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from support.cover import rest_slow
from support.foreign.folders import random_ids, write_folder

from adaptive_lm.export.source import read
from adaptive_lm.serve.cli import group
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.run.checkpoints.adapted import BASE
from adaptive_lm.train.run.checkpoints.checkpoint import Checkpoint, load_checkpoint
from adaptive_lm.train.run.metrics import read_metrics

QUICK = """\
data: {{sources: ["rivers.txt"], cache_dir: "{cache}"}}
optimizer: {{kind: adamw, adamw_lr: 0.01, adamw_matrix_lr: 0.01}}
trainer: {{steps: 6, max_seconds: null, batch_size: 2, sequence_length: 16, eval_every: 2, eval_tokens: 64,
  final_eval_tokens: 64, checkpoint_every: 2, log_every: 1, threads: 1, precision: {precision}, matmul: torch,
  device: cpu, tensorboard: false, routing_snapshots: 0}}
lora: {{rank: 3, alpha: 7, dropout: 0.1}}
"""
pytest.importorskip("transformers")
# peft asks transformers by a name that the newest one is about to drop
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def adaptive(*arguments: object) -> Result:
    return CliRunner().invoke(group, [str(argument) for argument in arguments], catch_exceptions=False)


def trained(*arguments: object) -> Path:
    result = adaptive("train", *arguments)
    assert result.exit_code == 0, result.stderr
    return Path(result.stdout.strip())


def imported(place: Path, name: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Import a tiny model as runs/NAME, and return it as transformers has it."""
    model = write_folder(place / "models" / name, name, dtype=dtype)
    result = adaptive("import", place / "models" / name, "--name", name, "--heldout", "rivers.txt")
    assert result.exit_code == 0, result.stderr
    return model


@pytest.fixture
def here(folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Change to a folder with a text and a quick recipe."""
    shutil.copy(text_file, folder / "rivers.txt")
    cache = tmp_path_factory.mktemp("cache")
    for precision in ("fp32", "bf16"):
        (folder / f"{precision}.yaml").write_text(QUICK.format(cache=cache, precision=precision))
    return folder


def logits_of(run: Path) -> torch.Tensor:
    """Compute the logits of the merged weights."""
    checkpoint = load_checkpoint(run)
    model = Transformer(checkpoint.config.model).eval()
    model.load_state_dict(checkpoint.model_state)
    with torch.no_grad():
        logits: torch.Tensor = model(random_ids(24)).logits
    return logits


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert one.step == other.step
    for before, after in ((one.model_state, other.model_state), (one.optimizer_state, other.optimizer_state)):
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert torch.equal(tensor, after[name]), name


@pytest.mark.parametrize(
    ("name", "precision"),
    rest_slow(
        itertools.product(["llama_biased", "qwen2_moe", "gemma3_text"], ["fp32", "bf16"]),
        [("llama_biased", "bf16"), ("qwen2_moe", "fp32"), ("gemma3_text", "fp32")],
    ),
)
def test_adapters_learn_and_the_weights_stay(here: Path, name: str, precision: str) -> None:
    imported(here, name)
    run = trained(f"{precision}.yaml", "--from", name, "--name", "tuned", "--steps", "20")
    base, new = load_checkpoint(here / "runs" / name), load_checkpoint(run)
    frozen = load_file(run / BASE)
    for key, value in base.model_state.items():
        assert torch.equal(frozen[key], value), key
    changed = {
        key for key in base.model_state if not torch.equal(base.model_state[key].float(), new.model_state[key].float())
    }
    layers = {key for key in changed if "controller" not in key}
    assert layers
    assert all(
        key.endswith((".q.weight", ".kv.weight", ".o.weight", "gate_up.weight", "down.weight")) for key in layers
    )
    losses = [record["loss"] for record in read_metrics(run / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.3
    saved = load_file(new.path / "model.safetensors")
    assert not [key for key in saved if ".adapter." not in key and "controller" not in key and "window" not in key]


def test_the_first_step_computes_what_the_run_computed(here: Path) -> None:
    imported(here, "qwen2")
    run = trained("fp32.yaml", "--from", "qwen2", "--name", "tuned", "--steps", "0")
    assert torch.equal(logits_of(run), logits_of(here / "runs" / "qwen2"))


def test_a_stopped_run_goes_on_to_the_same_bits_without_the_run_it_came_from(here: Path) -> None:
    imported(here, "qwen3_moe")
    command = ("fp32.yaml", "--from", "qwen3_moe", "--set", "lora.targets=[q, kv, o]")
    whole = trained(*command, "--name", "whole")
    trained(*command, "--name", "parts", "--stop-at", "3")
    shutil.rmtree(here / "runs" / "qwen3_moe")
    assert_same(load_checkpoint(whole), load_checkpoint(trained("--resume", "--name", "parts")))


def test_the_merged_model_equals_the_model_with_its_adapters(here: Path) -> None:
    imported(here, "llama")
    run = trained("fp32.yaml", "--from", "llama", "--name", "tuned")
    val = read_metrics(run / "metrics.jsonl")[-1]["val_loss"]
    again = trained("fp32.yaml", "--from", "tuned", "--name", "merged", "--steps", "0", "--set", "lora=null")
    assert torch.equal(logits_of(again), logits_of(run))
    source = read(run)  # as an export reads it
    with torch.no_grad():
        assert torch.allclose(source.model(random_ids(24)).logits, logits_of(run), atol=1e-6)
    assert val is not None


def test_the_display_names_how_many_weights_are_trained(here: Path) -> None:
    imported(here, "llama")
    result = adaptive("train", "fp32.yaml", "--from", "llama", "--name", "tuned", "--steps", "0")
    assert re.search(r"runs/tuned: 0\.\d+M trained of 0\.\d+M parameters", result.stderr)


def test_adapters_of_a_tuned_run_begin_from_its_merged_weights(here: Path) -> None:
    imported(here, "llama")
    first = trained("fp32.yaml", "--from", "llama", "--name", "first")
    second = trained("fp32.yaml", "--from", "first", "--name", "second", "--steps", "0")
    assert torch.equal(logits_of(first), logits_of(second))


def test_an_onnx_export_of_a_tuned_run_is_checked_against_torch(here: Path) -> None:
    imported(here, "llama")
    trained("fp32.yaml", "--from", "llama", "--name", "tuned")
    result = adaptive("export", "tuned", "--target", "portable")
    assert result.exit_code == 0, result.stderr


def test_transformers_computes_the_same_with_the_merged_weights(here: Path) -> None:
    from transformers import AutoModelForCausalLM

    imported(here, "qwen3")
    run = trained("fp32.yaml", "--from", "qwen3", "--name", "tuned")
    result = adaptive("export", "tuned", "--to", "hf", "--out", "merged")
    assert result.exit_code == 0, result.stderr
    theirs = AutoModelForCausalLM.from_pretrained(here / "merged", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(random_ids(24), use_cache=False).logits
    assert float((expected - logits_of(run)).abs().max() / (expected.max() - expected.min())) < 1e-4


@pytest.mark.parametrize("name", ["llama_biased", "qwen2", "qwen3_moe", "qwen2_moe", "gemma3_text"])
def test_peft_computes_the_same_with_adapters_written_here(here: Path, name: str) -> None:
    peft = pytest.importorskip("peft")
    theirs = imported(here, name, torch.float32)
    run = trained("fp32.yaml", "--from", name, "--name", "tuned", "--set", "lora.targets=[q, kv, o]")
    result = adaptive("export", "tuned", "--to", "peft", "--out", "adapter")
    assert result.exit_code == 0, result.stderr
    model = peft.PeftModel.from_pretrained(theirs, "adapter").eval()
    with torch.no_grad():
        expected = model(random_ids(24), use_cache=False).logits
    ours = logits_of(run)
    assert float((expected - ours).abs().max() / (expected.max() - expected.min())) < 1e-4
    assert not torch.allclose(ours, logits_of(here / "runs" / name), atol=1e-3)


def peft_adapter(place: Path, model: Any, **settings: Any) -> Any:
    """Write a random adapter of peft, and return the model with it."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    adapted = peft.get_peft_model(model, config).eval()
    adapted.save_pretrained(place)
    return adapted


@pytest.mark.parametrize("modules", [["q_proj", "v_proj"], ["k_proj", "o_proj", "gate_proj", "down_proj"]])
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "rslora"])
def test_an_adapter_of_peft_computes_the_same_here(here: Path, modules: list[str], scaled: bool) -> None:
    theirs = imported(here, "qwen3", torch.float32)
    adapted = peft_adapter(here / "adapter", theirs, target_modules=modules, use_rslora=scaled)
    run = trained("fp32.yaml", "--from", "qwen3", "--lora", "adapter", "--name", "tuned", "--steps", "0")
    with torch.no_grad():
        expected = adapted(random_ids(24), use_cache=False).logits
    assert float((expected - logits_of(run)).abs().max() / (expected.max() - expected.min())) < 1e-4


def test_an_adapter_of_another_model_is_refused_before_anything_is_written(here: Path) -> None:
    imported(here, "qwen3", torch.float32)
    other = imported(here, "llama", torch.float32)
    peft_adapter(here / "adapter", other, target_modules=["q_proj"])
    result = adaptive("train", "fp32.yaml", "--from", "qwen3", "--lora", "adapter", "--name", "tuned")
    assert (result.exit_code, "it is the adapter of another model" in result.stderr) == (1, True)
    assert not (here / "runs" / "tuned").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "is of the type IA3; expected LORA"),
        ({"use_dora": True}, "use_dora True"),
        ({"bias": "all"}, "has bias all, expected none"),
        ({"modules_to_save": ["lm_head"]}, "has modules_to_save"),
        ({"r": "four"}, "a whole number from 1 to 4096"),
    ],
)
def test_an_adapter_that_changes_more_than_matrices_is_refused(
    here: Path, changes: dict[str, Any], message: str
) -> None:
    peft_adapter(here / "adapter", imported(here, "qwen3", torch.float32), target_modules=["q_proj"])
    path = here / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    result = adaptive("train", "fp32.yaml", "--from", "qwen3", "--lora", "adapter", "--name", "tuned")
    assert (result.exit_code, message in result.stderr) == (1, True), result.stderr


def test_a_truncated_adapter_is_refused(here: Path) -> None:
    peft_adapter(here / "adapter", imported(here, "qwen3", torch.float32), target_modules=["q_proj"])
    weights = here / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    result = adaptive("train", "fp32.yaml", "--from", "qwen3", "--lora", "adapter", "--name", "tuned")
    assert (result.exit_code, "is damaged" in result.stderr) == (1, True), result.stderr


def test_a_family_whose_matrices_an_import_changes_is_refused(here: Path) -> None:
    imported(here, "phi3")
    trained("fp32.yaml", "--from", "phi3", "--name", "tuned", "--steps", "0")
    result = adaptive("export", "tuned", "--to", "peft", "--out", "adapter")
    assert (result.exit_code, "of the family phi3" in result.stderr) == (1, True), result.stderr
    assert not (here / "adapter").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "optimizer.kind=muon"), "optimizer.kind is 'muon', but the adapters of lora need 'adamw'"),
        (("--compile",), "trainer.compile is True"),
        (("--set", "lora.targets=[ffn]"), "no layer has such a matrix"),
        (("--set", "lora.targets=[]"), "expected some of q, kv, o and ffn"),
        (("--set", "model.depth.exit_layers=[0]", "--set", "model.depth.exit_criterion=router"), "no exit_routers.0"),
    ],
)
def test_what_adapters_do_not_work_with_is_named(here: Path, arguments: tuple[str, ...], message: str) -> None:
    imported(here, "mixtral")
    result = adaptive("train", "fp32.yaml", "--from", "mixtral", "--name", "tuned", *arguments)
    assert (result.exit_code, message in result.stderr) == (1, True), result.stderr


def test_adapters_without_a_run_are_refused(here: Path) -> None:
    result = adaptive("train", "fp32.yaml", "--name", "tuned")
    assert (result.exit_code, "name it with --from RUN" in result.stderr) == (1, True), result.stderr


def test_a_damaged_base_is_named(here: Path) -> None:
    imported(here, "llama")
    run = trained("fp32.yaml", "--from", "llama", "--name", "tuned")
    damaged = bytearray((run / BASE).read_bytes())
    damaged[-1] ^= 1
    (run / BASE).unlink()  # it is a link to the file of the other run
    (run / BASE).write_bytes(damaged)
    result = adaptive("export", "tuned")
    assert (result.exit_code, "base.safetensors is not what was written there" in result.stderr) == (1, True)
