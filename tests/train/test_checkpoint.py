"""Checkpoints: whole or not at all, verified when read, the newest good one first (scenarios T1-T8, T23)."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adaptive_lm.train import checkpoint, tensors
from adaptive_lm.train.checkpoint import (
    COMPLETE,
    FILES,
    list_checkpoints,
    load_checkpoint,
    newest_good,
    prune,
    save_checkpoint,
)
from adaptive_lm.train.config import RunConfig
from adaptive_lm.train.errors import UserError
from adaptive_lm.train.tensors import DTYPES, write_tensors

Save = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "river"


@pytest.fixture
def save(run: Path) -> Save:
    """Saves step N, whose only weight is full of N."""

    def write(step: int) -> Path:
        weights = {"weight": torch.full((64,), float(step))}
        return save_checkpoint(run / "checkpoints", step, RunConfig(), weights, {"slot": torch.ones(3)}, {"tokens": 7})

    return write


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
    for found in (load_checkpoint(run), load_checkpoint(path), load_checkpoint(str(run))):
        assert torch.equal(found.model_state["weight"], torch.full((64,), 20.0))
        assert (found.step, found.path, found.run, found.config) == (20, path, run, RunConfig())
        assert found.state["tokens"] == 7
        assert torch.equal(found.optimizer_state["slot"], torch.ones(3))


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
    said: list[str] = []
    found = newest_good(run, said.append)
    assert found is not None
    assert found.step == 10
    assert found.damaged == (run / "checkpoints" / "step-000020",)
    assert len(said) == 1
    assert named in said[0]
    assert "step-000020" in said[0]
    assert "falling back to" in said[0]


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
    with pytest.raises(UserError, match=r"holds no checkpoint.*adaptive train --name river"):
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
    said: list[str] = []
    prune(run / "checkpoints", 1, warning=said.append)
    assert load_checkpoint(run, lambda _: None).step == 1
    assert len(said) == 2


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
    said: list[str] = []
    prune(run / "checkpoints", 1, warning=said.append)
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-000001", "step-000003"]
    assert said == [
        f"cannot delete the old checkpoint {run}/checkpoints/step-000001: Permission denied; training goes on"
    ]


@pytest.mark.parametrize("number", [1, 2, 3, 4], ids=["model", "optimizer", "state", "complete"])
def test_a_full_disk_is_an_error_that_leaves_the_checkpoint_before_intact(
    run: Path, save: Save, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """T2, at whichever file the disk fills up."""
    save(10)
    synced = 0
    sync = os.fsync

    def full(handle: int) -> None:
        nonlocal synced
        synced += 1
        if synced == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"step-000020: No space left on device.*step-000010, is intact.*make room"):
        save(20)
    monkeypatch.undo()
    assert load_checkpoint(run).step == 10
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000010"]


LIMITED = """
import resource, sys, torch
from pathlib import Path
from adaptive_lm.train.checkpoint import save_checkpoint
from adaptive_lm.train.config import RunConfig
from adaptive_lm.train.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint(Path(sys.argv[1]), 20, RunConfig(), {"weight": torch.zeros(100_000)}, {}, {})
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files to fill")
def test_a_write_that_the_system_refuses_halfway_is_an_error(run: Path, save: Save) -> None:
    """T2 with a real refusal: the kernel's own limit on the size of a file."""
    save(10)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(run / "checkpoints")], capture_output=True, text=True, check=True
    )
    assert "cannot write" in done.stdout
    assert "File too large" in done.stdout
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000010"]


def test_nothing_is_left_to_load_from_a_save_that_was_cut_anywhere(
    run: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T1, at every boundary: the process ends (KeyboardInterrupt stands for it) before each sync and each rename."""
    save(10)
    calls = 0
    for cut in range(1, 9):
        calls = 0

        def die(*arguments: Any, _cut: int = cut, _real: Callable[..., Any] = os.fsync) -> Any:
            nonlocal calls
            calls += 1
            if calls == _cut:
                raise KeyboardInterrupt
            return _real(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", die)
            try:
                save(20 + cut)
            except KeyboardInterrupt:
                assert load_checkpoint(run).step in (10, 20 + cut)
            else:
                break
    assert calls >= 6  # four files and two folders were synced
    checkpoint.clean(run / "checkpoints")
    assert not list((run / "checkpoints").glob(".writing-*"))


KILLING = """
import itertools, os, random, signal, sys, time
from pathlib import Path

import torch
from adaptive_lm.train.checkpoint import clean, list_checkpoints, load_checkpoint, prune, save_checkpoint
from adaptive_lm.train.config import RunConfig

torch.set_num_threads(1)  # children are forked to spare them the import of torch, and threads do not survive that
folder = Path(sys.argv[1])


def save_for_ever(first, pipe):
    clean(folder)
    for step in itertools.count(first):
        weights = {str(i): torch.full((200_000,), float(step)) for i in range(8)}
        save_checkpoint(folder, step, RunConfig(), weights, {"slot": torch.ones(200_000)}, {})
        prune(folder, 2)
        os.write(pipe, b"x")


def complain(text):
    raise SystemExit(f"a kill damaged a finished checkpoint: {text}")


generator = random.Random(1)
last = leftovers = 0
for _ in range(20):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        save_for_ever(last + 1, writing)
    os.close(writing)
    said = len(os.read(reading, 1))  # one is saved
    time.sleep(generator.uniform(0.0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := len(os.read(reading, 100)):
        said += more
    os.close(reading)
    leftovers += len(list(folder.glob(".writing-*")))
    found = load_checkpoint(folder.parent, complain)
    assert found.step >= last + said, (found.step, last, said)
    assert all(bool((tensor == found.step).all()) for tensor in found.model_state.values())
    last = found.step
print(leftovers)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_twenty_times_during_saves_one_good_checkpoint_always_loads(run: Path) -> None:
    """T1: kill -9 at a random moment of a process that does nothing but save."""
    done = subprocess.run(
        [sys.executable, "-c", KILLING, str(run / "checkpoints")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3, "the kills missed the saves, so nothing was tested"


def test_no_part_of_training_unpickles(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = Path(tensors.__file__).parent.rglob("*.py")
    words = ("import pickle", "torch.load(", "torch.save(", "allow_pickle=True")
    assert not [(path.name, word) for path in sources for word in words if word in path.read_text("utf-8")]
