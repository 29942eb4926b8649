"""Checkpoints: whole or not at all, verified when read, the newest good one first (scenarios T1-T8, T23, S55)."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.config.run_config import RunConfig
from adaptive_lm.train.run.checkpoints import tensor_file as tensors
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint, newest_good, prune
from adaptive_lm.train.run.checkpoints.names import COMPLETE, FILES, list_checkpoints
from adaptive_lm.train.run.checkpoints.tensor_file import DTYPES, write_tensors

Save = Callable[..., Path]


def damage(kind: str, path: Path) -> str:
    """Damages a checkpoint; returns the name of the file that a message must name."""
    if kind == "truncated":
        (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-5])
    elif kind == "bit flipped":
        data = bytearray((path / "optimizer.safetensors").read_bytes())
        data[-2] ^= 1
        (path / "optimizer.safetensors").write_bytes(data)
        return "optimizer.safetensors"
    elif kind == "shard missing":
        (path / "model.safetensors").unlink()
    elif kind == "state missing":
        (path / "state.json").unlink()
        return "state.json"
    elif kind == "never completed":
        (path / COMPLETE).unlink()
        return COMPLETE
    elif kind == "complete.json empty":
        (path / COMPLETE).write_text("")
        return COMPLETE
    elif kind == "another version":
        content = json.loads((path / COMPLETE).read_text())
        (path / COMPLETE).write_text(json.dumps({**content, "format_version": 99}))
        return "format version 99"
    return "model.safetensors"


DAMAGES = [
    "truncated", "bit flipped", "shard missing", "state missing", "never completed", "complete.json empty",
    "another version",
]  # fmt: skip


def test_a_checkpoint_comes_back_as_it_was_saved(run: Path, save: Save) -> None:
    path = save(20)
    assert path == run / "checkpoints" / "step-000020"
    assert sorted(p.name for p in path.iterdir()) == sorted([*FILES, COMPLETE])
    for checkpoint in (load_checkpoint(run), load_checkpoint(path), load_checkpoint(str(run))):
        assert torch.equal(checkpoint.model_state["weight"], torch.full((64,), 20.0))
        assert (checkpoint.step, checkpoint.path, checkpoint.run, checkpoint.config) == (20, path, run, RunConfig())
        assert checkpoint.state["tokens"] == 7
        assert torch.equal(checkpoint.optimizer_state["slot"], torch.ones(3))


def test_the_newest_is_the_one_of_the_highest_step(run: Path, save: Save) -> None:
    for step in (900_000, 1_000_000, 5):
        save(step)
    assert load_checkpoint(run).step == 1_000_000


def test_every_kind_of_tensor_is_written_as_the_library_reads_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    written: dict[str, Tensor] = {
        f"{dtype}": torch.randint(0, 2, (3, 5)).to(dtype)
        if dtype in (torch.bool, torch.uint8)
        else torch.randn(3, 5).to(dtype)
        for dtype in DTYPES
    }
    written |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "view": torch.randn(4, 6).t()[1:, ::2]}
    facts = write_tensors(tmp_path / "x.safetensors", written)
    read = load_file(tmp_path / "x.safetensors")
    assert facts["bytes"] == (tmp_path / "x.safetensors").stat().st_size
    assert read.keys() == written.keys()
    for name, tensor in written.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(run: Path, save: Save, kind: str) -> None:
    """T3, T4, T5, T23."""
    save(10)
    named = damage(kind, save(20))
    warnings: list[str] = []
    checkpoint = newest_good(run, warnings.append)
    assert checkpoint is not None
    assert checkpoint.step == 10
    assert checkpoint.damaged == (run / "checkpoints" / "step-000020",)
    assert len(warnings) == 1
    assert named in warnings[0]
    assert "step-000020" in warnings[0]
    assert "falling back to" in warnings[0]


@pytest.mark.parametrize("kind", DAMAGES)
def test_when_every_checkpoint_is_damaged_nothing_is_loaded(run: Path, save: Save, kind: str) -> None:
    """T6."""
    for step in (10, 20):
        damage(kind, save(step))
    with pytest.raises(UserError, match=r"(?s)every checkpoint of .* is damaged.*step-000020.*step-000010") as error:
        load_checkpoint(run)
    assert error.value.exit_code == 1


def test_a_damaged_checkpoint_named_by_itself_is_an_error_and_not_another_checkpoint(run: Path, save: Save) -> None:
    save(10)
    path = save(20)
    damage("bit flipped", path)
    with pytest.raises(UserError, match=r"damaged checkpoint: .*optimizer\.safetensors has sha256"):
        load_checkpoint(path)


def test_a_folder_without_checkpoints_is_an_error_that_says_what_to_type(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UserError, match="no run or checkpoint at"):
        load_checkpoint(tmp_path / "nowhere")
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"has no checkpoint.*adaptive train \S+/river/config\.yaml --name river"):
        load_checkpoint(run)


def test_the_newest_checkpoints_are_kept(run: Path, save: Save) -> None:
    for step in range(1, 7):
        save(step)
        prune(run / "checkpoints", 3)
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == [
        "step-000004",
        "step-000005",
        "step-000006",
    ]


def test_pruning_never_deletes_the_only_good_checkpoint(run: Path, save: Save) -> None:
    """T8: the newer ones are damaged, so they do not count."""
    save(1)
    damage("bit flipped", save(2))
    damage("truncated", save(3))
    warnings: list[str] = []
    prune(run / "checkpoints", 1, warning=warnings.append)
    assert load_checkpoint(run, lambda _: None).step == 1
    assert len(warnings) == 2


def test_pruning_survives_a_folder_that_cannot_be_deleted(
    run: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T8."""
    for step in (1, 2, 3):
        save(step)
    delete = shutil.rmtree

    def refuse(path: Path, **options: Any) -> None:
        if path.name == "step-000001":
            raise PermissionError(errno.EACCES, "Permission denied")
        delete(path, **options)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    warnings: list[str] = []
    prune(run / "checkpoints", 1, warning=warnings.append)
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-000001", "step-000003"]
    assert warnings == [
        f"cannot delete the old checkpoint {run}/checkpoints/step-000001: Permission denied; training continues"
    ]


def test_no_part_of_training_unpickles(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = Path(tensors.__file__).parents[2].rglob("*.py")
    words = ("import pickle", "torch.load(", "torch.save(", "allow_pickle=True")
    assert not [(path.name, word) for path in sources for word in words if word in path.read_text("utf-8")]
