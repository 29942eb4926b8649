"""The source of an export: which run, which checkpoint, and the files of the run."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.runs import text, write_run

from adaptive_lm.contract.errors import UserError
from adaptive_lm.contract.file_names import GENERATION
from adaptive_lm.contract.generation_settings import GenerationSettings, template_file
from adaptive_lm.export.exporter import run_export
from adaptive_lm.export.package import write_files
from adaptive_lm.export.source import Source, read
from adaptive_lm.runtime.format.manifest import Manifest
from adaptive_lm.train.data.tokenizers.tokenizers import byte_tokenizer
from adaptive_lm.train.run.checkpoints.best import Score, point_at
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint, save_checkpoint, write_json
from adaptive_lm.train.run.find import find


def test_a_run_is_found_by_name_and_by_path_and_a_checkpoint_by_path(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find("tiny") == Path("runs/tiny")
    assert find("runs/tiny") == Path("runs/tiny")
    assert find(str(here / "runs" / "tiny")) == here / "runs" / "tiny"
    monkeypatch.setenv("HOME", str(here))
    assert find("~/runs/tiny") == here / "runs" / "tiny"
    path = find("runs/tiny/checkpoints/step-000010")
    assert read(path).checkpoint.step == 10
    assert read(find("tiny")).checkpoint.step == 26


def test_a_run_goes_before_a_folder_of_its_name(here: Path) -> None:
    (here / "tiny").mkdir()
    assert find("tiny") == Path("runs/tiny")
    assert find("./tiny") == Path("tiny"), "spelt as a path it is the folder"


def test_a_checkpoint_of_a_run_is_named_best_last_or_by_its_step(here: Path) -> None:
    run = Path("runs/tiny")
    assert [read(find("tiny", which)).checkpoint.step for which in ("last", "10", "26")] == [26, 10, 26]
    with pytest.raises(UserError, match=r"runs/tiny has no best checkpoint: none was scored; it has .* steps 10, 26;"):
        find("tiny", "best")
    point_at(run, Score(10, 1.5, 64))
    assert read(find("tiny", "best")).checkpoint.step == 10
    with pytest.raises(UserError, match=r"no checkpoint of step 11; it has checkpoints of steps 10, 26; .* last takes"):
        find("tiny", "11")
    with pytest.raises(UserError, match=r"--checkpoint 'newest': expected best, last, or the step"):
        find("tiny", "newest")
    with pytest.raises(UserError, match=r"--checkpoint best needs a run, but .*step-000010 is not a run"):
        find("runs/tiny/checkpoints/step-000010", "best")


def test_the_newest_run_is_the_default(here: Path) -> None:
    shutil.copytree("runs/tiny", "runs/older")
    os.utime("runs/older/config.yaml", (1, 1))
    assert find(None) == Path("runs/tiny")


def test_an_unknown_run_is_answered_with_those_there_are(here: Path) -> None:
    shutil.copytree("runs/tiny", "runs/another")
    with pytest.raises(UserError, match=r"no run or checkpoint tony; runs here: another, tiny$"):
        find("tony")
    shutil.rmtree("runs")
    with pytest.raises(UserError, match=r"there are no runs here; train one: adaptive train quickstart$"):
        find("tony")
    with pytest.raises(UserError, match=r"there is no run in .*; train one"):
        find(None)


@pytest.mark.parametrize("name", ["heldout.txt", "tokenizer.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"\xff\xfe")], ids=["missing", "binary"])
def test_a_file_of_the_run_that_cannot_be_read_is_named(
    here: Path, name: str, damage: Callable[[Path], object]
) -> None:
    damage(here / "runs" / "tiny" / name)
    with pytest.raises(UserError, match=rf"cannot read runs/tiny/{name}, a file of the run: .*; restore it or train"):
        read(find("tiny"))


@pytest.mark.parametrize("content", ["", "t"])
def test_a_heldout_text_too_short_to_judge_by_is_named(here: Path, content: str) -> None:
    (here / "runs" / "tiny" / "heldout.txt").write_text(content)
    with pytest.raises(
        UserError,
        match=r"runs/tiny/heldout\.txt has fewer than the 2 tokens that the check of an export needs; restore it",
    ):
        read(find("tiny"))


def test_a_damaged_tokenizer_is_named(here: Path) -> None:
    (here / "runs" / "tiny" / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(UserError, match=r"runs/tiny/tokenizer\.json is damaged: .*; restore it or train again"):
        read(find("tiny"))


def test_a_tokenizer_larger_than_the_vocabulary_is_refused_with_both_numbers(here: Path) -> None:
    (here / "runs" / "tiny" / "tokenizer.json").write_text(byte_tokenizer().to_str())
    with pytest.raises(
        UserError, match=r"tokenizer\.json has ids up to 256, the model's vocabulary holds \d\d; it is not"
    ):
        read(find("tiny"))


def test_a_vocabulary_may_be_padded(tmp_path: Path) -> None:
    source = read(write_run(tmp_path / "runs" / "padded", vocab_size=64))
    assert source.tokenizer.get_vocab_size() < source.config.vocab_size == 64


def test_a_checkpoint_taken_out_of_its_run_misses_the_runs_files(here: Path) -> None:
    shutil.copytree("runs/tiny/checkpoints/step-000010", "elsewhere/deep/step-000010")
    with pytest.raises(UserError, match=r"cannot read elsewhere/tokenizer\.json, a file of the run"):
        read(find("elsewhere/deep/step-000010"))


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = here / "runs" / "tiny" / "checkpoints" / "step-000026" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert read(find("tiny")).checkpoint.step == 10
    told = capsys.readouterr().err
    assert told.startswith("warning: damaged checkpoint: runs/tiny/checkpoints/step-000026/model.safetensors has ")
    assert told.endswith("falling back to runs/tiny/checkpoints/step-000010\n")
    with pytest.raises(UserError, match=r"damaged checkpoint: .*; name the run's folder to take its newest good one"):
        read(find("runs/tiny/checkpoints/step-000026"))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (float("nan"), "the weights of step 26 are not finite"),
        (float("inf"), "the weights of step 26 are not finite"),
        (1e30, "the weights of step 26 give logits that are not finite"),
    ],
)
def test_a_run_that_diverged_is_refused_with_a_finite_checkpoint_as_the_cure(
    here: Path, value: float, problem: str
) -> None:
    run = Path("runs/tiny")
    checkpoint = load_checkpoint(run)
    weights = {
        name: tensor * value if name.startswith("layers.0.attention.") and name.endswith("weight") else tensor
        for name, tensor in checkpoint.model_state.items()
    }
    save_checkpoint(run / "checkpoints", 26, checkpoint.config, weights, {}, {})
    with pytest.raises(UserError, match=rf"^runs/tiny diverged: {problem}\. Train it .*optimizer\.adamw_lr=0\.006$"):
        read(find("tiny"))
    point_at(run, Score(10, 1.5, 64))
    with pytest.raises(UserError, match=rf"{problem}.*step 10.*: adaptive export tiny --checkpoint best$"):
        read(find("tiny"))
    assert read(find("tiny", "best")).checkpoint.step == 10
    point_at(run, Score(26, 1.5, 64))
    with pytest.raises(UserError, match=r"adamw_lr=0\.006$"):  # itself is no cure
        read(find("tiny", "best"))


def test_the_weights_are_the_parameters_and_tied_ones_stand_once(tmp_path: Path, source: Source) -> None:
    assert set(source.weights()) == {name for name, _ in source.model.named_parameters()}, "it learned no level"
    assert "head.weight" in source.weights()
    assert not any("controller" in name or name in ("cos", "sin") for name in source.weights())
    tied = read(write_run(tmp_path / "runs" / "tied", tie_embeddings=True))
    assert "head.weight" not in tied.weights()


def test_heldout_ids_are_the_first_of_the_text(source: Source) -> None:
    ids = source.heldout_ids(40)
    assert ids.shape == (1, 40)
    assert source.tokenizer.decode(ids[0].tolist()) == text(seed=1)[:40]
    assert source.heldout_ids(10**6).shape[1] == len(text(seed=1))


def controllers(source: Source) -> dict[str, torch.Tensor]:
    return {name: value for name, value in source.model.state_dict().items() if "controller" in name}


def test_controllers_that_have_seen_nothing_look_at_heldout_text(here: Path) -> None:
    fresh = load_checkpoint("runs/tiny")
    found = controllers(read(find("tiny")))
    assert all(int(fresh.model_state[name]) == 0 for name in found if name.endswith("num_updates"))
    assert all(int(value) == 2 for name, value in found.items() if name.endswith("num_updates"))
    assert not any(torch.equal(fresh.model_state[name], value) for name, value in found.items())


OLD_MODEL: dict[str, Any] = {
    "vocab_size": 22, "context_length": 256, "dim": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2,
    "head_dim": 0, "rope_theta": 10000.0, "norm_eps": 1e-05, "tie_embeddings": False,
    "ffn": {
        "routing": "top_p", "dim": 344, "num_experts": 4, "expert_dim": 16, "shared_expert_dim": 0,
        "experts_per_token": 1.6, "renormalize": True, "controller": "quantile", "router_top_p": 0.4, "ema": 0.7,
    },
    "depth": {"layers_share": 0.5, "skipped_kv": "none", "ema": 0.6, "exit_layers": [0, 1]},
}  # fmt: skip
"""The config of a checkpoint from before heads, windows, positions and controllers, word for word."""
OLD_STATE = {
    "embedding.weight", "norm.weight", "head.weight",
    *(f"layers.1.depth_router.{part}" for part in ("weight", "bias", "controller.table", "controller.num_updates")),
    *(
        f"layers.{layer}.{part}"
        for layer in range(3)
        for part in (
            "attention_norm.weight", "attention.q.weight", "attention.kv.weight", "attention.o.weight",
            "attention.q_norm.weight", "attention.k_norm.weight", "ffn_norm.weight", "moe.gate_up", "moe.down",
            "moe.router.weight", "moe.router.controller.table", "moe.router.controller.num_updates",
        )
    ),
}  # fmt: skip


@pytest.mark.usefixtures("quick")
def test_a_checkpoint_from_before_the_later_mechanisms_is_read_and_exported(here: Path) -> None:
    folder = Path("runs/tiny/checkpoints/step-000026")
    assert set(load_checkpoint(folder).model_state) == OLD_STATE, "no name that it lacks, none of its names gone"
    state = json.loads((folder / "state.json").read_bytes())
    state["config"]["model"] = OLD_MODEL
    complete = json.loads((folder / "complete.json").read_bytes())
    complete["files"]["state.json"] = write_json(folder / "state.json", state)
    write_json(folder / "complete.json", complete)
    assert read(folder).config == read(find("runs/tiny/checkpoints/step-000010")).config
    exported = run_export("tiny", threads=1)
    assert exported.report["passed"] is True
    manifest = Manifest.read(exported.folder)
    assert (manifest.model.layers[0].positions, manifest.model.layers[0].window) == ("rope", 0)
    assert "head_top_p" not in manifest.inputs
    assert not {"selected_heads", "windows"} & set(manifest.outputs)


def test_levels_and_what_controllers_hold_stay_out_of_the_graph_but_the_windows_they_found(tmp_path: Path) -> None:
    """Learned levels are parameters of torch; in the exported model they are numbers of the manifest."""
    changes: dict[str, Any] = {
        "ffn": {
            "num_experts": 4,
            "expert_dim": 16,
            "controller": "learned",
            "router_top_p": {"first": 0.3, "last": 0.6},
        },
        "heads": {"routing": "top_p", "controller": "pi", "scope": "model"},
        "depth": {"layers_share": 0.5, "controller": "learned", "depth_threshold": [0.4, 0.45, 0.5]},
        "attention": {"window": 8, "window_kind": "entropy", "window_least": 2},
    }
    source = read(write_run(tmp_path / "runs" / "levels", **changes))
    parameters = {name for name, _ in source.model.named_parameters()}
    levels = {name for name in parameters if name.endswith("level_logit")}
    windows = {f"layers.{i}.attention.window_controller.window" for i in range(3)}
    assert len(levels) == 4
    assert set(source.weights()) == parameters - levels | windows
    held = source.thresholds()
    assert torch.allclose(held.head_top_p, source.model.default_thresholds().head_top_p + 1e-4)
    assert len({round(float(level), 4) for level in held.router_top_p}) == 3
    assert (held.head_top_p == held.head_top_p[0]).all()
    (tmp_path / "model").mkdir()
    written = write_files(source, tmp_path / "model").thresholds
    for name, values in held.given().items():
        np.testing.assert_array_equal(np.float32(getattr(written, name)), values.numpy())


def test_controllers_of_a_trained_model_are_left_alone(here: Path) -> None:
    fresh = load_checkpoint("runs/tiny")
    state = dict(fresh.model_state)
    (name,) = [key for key in state if key.startswith("layers.0.moe") and key.endswith("num_updates")]
    state[name] = torch.tensor(7)
    save_checkpoint(Path("runs/tiny/checkpoints"), 30, fresh.config, state, {"slot": torch.ones(1)}, {})
    found = controllers(read(find("tiny")))
    assert all(torch.equal(state[key], value) for key, value in found.items())


def test_what_an_import_wrote_reaches_the_manifest(here: Path, tmp_path: Path) -> None:
    run = here / "runs" / "tiny"
    settings = GenerationSettings(
        eos_ids=(0, 5),
        bos_id=3,
        add_bos=True,
        dialect="huggingface",
        special_tokens={"bos": "a"},
        sampling={"temperature": 0.6, "top_k": 20},
        templates={"tool_use": template_file("tool_use")},
        stop=("Human:",),
        tools="hermes",
    )
    (run / GENERATION).write_text(settings.to_json())
    (run / template_file("tool_use")).write_text("{{ tools }}")
    source = read(run)
    (tmp_path / "out").mkdir()
    manifest = write_files(source, tmp_path / "out")
    assert (manifest.model.eos_id, manifest.model.eos_ids) == (0, [0, 5])
    assert manifest.generation.model_dump() == {
        "dialect": "huggingface",
        "bos_id": 3,
        "add_bos": True,
        "special_tokens": {"bos": "a"},
        "sampling": {"temperature": 0.6, "top_k": 20},
        "stop": ["Human:"],
        "tools": "hermes",
        "templates": {"tool_use": "{{ tools }}"},
    }


def test_ends_that_the_tokenizer_lacks_are_named(here: Path) -> None:
    run = here / "runs" / "tiny"
    (run / GENERATION).write_text(GenerationSettings(eos_ids=(0, 10**6)).to_json())
    with pytest.raises(
        UserError, match=r"generation\.json names the token 1000000, which .*tokenizer\.json does not have"
    ):
        read(run)


def test_a_named_template_that_is_gone_is_named(here: Path) -> None:
    run = here / "runs" / "tiny"
    settings = GenerationSettings(eos_ids=(0,), templates={"rag": template_file("rag")})
    (run / GENERATION).write_text(settings.to_json())
    with pytest.raises(UserError, match=r"cannot read .*chat_template\.rag\.jinja"):
        read(run)
