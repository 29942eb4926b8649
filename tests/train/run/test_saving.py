"""Saves that do not reach their end: a full disk, a kill at any moment (T1, T2)."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.run.checkpoints import checkpoint
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint

Save = Callable[..., Path]


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
from adaptive_lm.train.run.checkpoints.checkpoint import save_checkpoint
from adaptive_lm.train.config.run_config import RunConfig
from adaptive_lm.contract.errors import UserError
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
from adaptive_lm.train.run.checkpoints.checkpoint import clean, load_checkpoint, prune, save_checkpoint
from adaptive_lm.train.run.checkpoints.names import list_checkpoints
from adaptive_lm.train.config.run_config import RunConfig

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
    saved = len(os.read(reading, 1))  # one is saved
    time.sleep(generator.uniform(0.0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := len(os.read(reading, 100)):
        saved += more
    os.close(reading)
    leftovers += len(list(folder.glob(".writing-*")))
    checkpoint = load_checkpoint(folder.parent, complain)
    assert checkpoint.step >= last + saved, (checkpoint.step, last, saved)
    assert all(bool((tensor == checkpoint.step).all()) for tensor in checkpoint.model_state.values())
    last = checkpoint.step
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
