"""What is exported: which run, which checkpoint, and the files that must lie beside it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import text, write_run

from adaptive_lm.export.source import Source, dial, find, read
from adaptive_lm.runtime.dial import Dial, resolve
from adaptive_lm.runtime.manifest import Manifest
from adaptive_lm.train.checkpoint import load_checkpoint, save_checkpoint
from adaptive_lm.train.data.tokenizers import byte_tokenizer
from adaptive_lm.train.errors import UserError
from adaptive_lm.train.model import Thresholds


def test_a_run_is_found_by_name_and_by_path_and_a_checkpoint_by_path(here: Path) -> None:
    assert find("tiny") == Path("runs/tiny")
    assert find("runs/tiny") == Path("runs/tiny")
    assert find(str(here / "runs" / "tiny")) == here / "runs" / "tiny"
    path = find("runs/tiny/checkpoints/step-000010")
    assert read(path).checkpoint.step == 10
    assert read(find("tiny")).checkpoint.step == 26


def test_a_run_goes_before_a_folder_of_its_name(here: Path) -> None:
    (here / "tiny").mkdir()
    assert find("tiny") == Path("runs/tiny")
    assert find("./tiny") == Path("tiny"), "spelt as a path it is the folder"


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
    with pytest.raises(UserError, match=rf"runs/tiny/{name}, a file of the run, cannot be read.*; restore it or train"):
        read(find("tiny"))


@pytest.mark.parametrize("content", ["", "t"])
def test_a_heldout_text_too_short_to_judge_by_is_named(here: Path, content: str) -> None:
    (here / "runs" / "tiny" / "heldout.txt").write_text(content)
    with pytest.raises(UserError, match=r"runs/tiny/heldout\.txt is too short to check an export by; train the run"):
        read(find("tiny"))


def test_a_damaged_tokenizer_is_named(here: Path) -> None:
    (here / "runs" / "tiny" / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(UserError, match=r"runs/tiny/tokenizer\.json is damaged: .*; restore it or train again"):
        read(find("tiny"))


def test_a_tokenizer_larger_than_the_vocabulary_is_refused_with_both_numbers(here: Path) -> None:
    (here / "runs" / "tiny" / "tokenizer.json").write_text(byte_tokenizer().to_str())
    with pytest.raises(
        UserError, match=r"tokenizer\.json has 257 tokens, the model's vocabulary holds \d\d; it is not"
    ):
        read(find("tiny"))


def test_a_vocabulary_may_be_padded(tmp_path: Path) -> None:
    source = read(write_run(tmp_path / "runs" / "padded", vocab_size=64))
    assert source.tokenizer.get_vocab_size() < source.config.vocab_size == 64


def test_a_checkpoint_taken_out_of_its_run_misses_the_runs_files(here: Path) -> None:
    shutil.copytree("runs/tiny/checkpoints/step-000010", "elsewhere/deep/step-000010")
    with pytest.raises(UserError, match=r"elsewhere/tokenizer\.json, a file of the run, cannot be read"):
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


def test_controllers_of_a_trained_model_are_left_alone(here: Path) -> None:
    fresh = load_checkpoint("runs/tiny")
    state = dict(fresh.model_state)
    (name,) = [key for key in state if key.startswith("layers.0.moe") and key.endswith("num_updates")]
    state[name] = torch.tensor(7)
    save_checkpoint(Path("runs/tiny/checkpoints"), 30, fresh.config, state, {"slot": torch.ones(1)}, {})
    found = controllers(read(find("tiny")))
    assert all(torch.equal(state[key], value) for key, value in found.items())


def test_the_dial_gives_the_averages_it_is_asked_for(source: Source, exported: object) -> None:
    """On the text that the controllers saw: experts per layer run, and the share of tokens that run a routed layer."""
    manifest = Manifest.read(exported.folder)  # type: ignore[attr-defined]
    ids = source.heldout_ids(2048)[:, :2048].view(-1, 256)

    def at(wanted: Dial) -> tuple[float, float]:
        found = resolve(manifest, wanted)
        ones = torch.ones(source.config.num_layers)
        limits = Thresholds(torch.from_numpy(found.router_top_p), torch.from_numpy(found.depth_threshold), ones, ones)
        with torch.no_grad():
            out = source.model(ids, limits)
        return float(out.usage()["experts_per_token"]), float(out.routing[1].runs.float().mean())

    for experts in (1.0, 1.6, 2.0, 3.0, 4.0):
        assert at(Dial(experts=experts))[0] == pytest.approx(experts, abs=0.15)
    for share in (0.0, 0.25, 0.5, 0.8, 1.0):
        assert at(Dial(layers_share=share))[1] == pytest.approx(share, abs=0.06)
    assert at(Dial()) == pytest.approx((1.6, 0.5), abs=0.08)


def test_the_dial_table_has_what_the_layers_can_choose(source: Source, tmp_path: Path) -> None:
    table = dial(source)
    assert table.grid == np.linspace(0, 1, 33).tolist()
    assert [entry is not None for entry in table.router_top_p] == [True, True, True]
    assert [entry is not None for entry in table.depth_threshold] == [False, True, False]
    assert all(list(entry) == sorted(entry) for entry in table.router_top_p if entry)
    assert all(list(entry) == sorted(entry, reverse=True) for entry in table.depth_threshold if entry)
    assert (table.target.experts_per_token, table.target.layers_share) == (1.6, 0.5)
    dense = dial(read(write_run(tmp_path / "runs" / "dense", ffn={"routing": "dense", "dim": 40}, depth={})))
    assert dense.router_top_p == dense.depth_threshold == [None, None, None]
    assert (dense.target.experts_per_token, dense.target.layers_share) == (1.0, 1.0)
    json.dumps(table.model_dump())
