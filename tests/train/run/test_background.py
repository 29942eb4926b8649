"""Saves beside training: the same files, whatever training does meanwhile (T2, T8, T11, T12, T24, T25, T28)."""

import errno
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.forks import Fork, needs_fork

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import RunConfig
from adaptive_lm.train.data import Corpus
from adaptive_lm.train.run.checkpoints import saver as saving
from adaptive_lm.train.run.checkpoints.background_writer import Staging
from adaptive_lm.train.run.checkpoints.best import Score, read_best
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint
from adaptive_lm.train.run.checkpoints.names import list_checkpoints
from adaptive_lm.train.run.checkpoints.saver import Saver
from adaptive_lm.train.run.folder import Run, named_run
from adaptive_lm.train.run.metrics import read_metrics
from adaptive_lm.train.system.progress import Progress

Make = Callable[..., RunConfig]
BACKGROUND = {"save": "background"}


@pytest.fixture
def saver(run: Path, tiny_config: Make, display: Progress) -> Saver:
    config = tiny_config(trainer={**BACKGROUND, "keep_checkpoints": 2})
    return Saver(config, Run(run), display, [], 0.0)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Return an event that saves wait for before they write."""
    opened, write = threading.Event(), saving.save_checkpoint

    def wait_and_write(*arguments: Any) -> Path:
        assert opened.wait(20)
        return write(*arguments)

    monkeypatch.setattr(saving, "save_checkpoint", wait_and_write)
    yield opened
    opened.set()


def fill_the_disk(at: int, monkeypatch: pytest.MonkeyPatch, after: threading.Event | None = None) -> threading.Event:
    """From sync number `at` of the writer's thread on, but not before `after`, the disk is full; sets the event."""
    sync, calls, failed = os.fsync, iter(range(1, 10**6)), threading.Event()

    def full(handle: int) -> None:
        if threading.current_thread() is not threading.main_thread() and next(calls) >= at:
            assert after is None or after.wait(20)
            failed.set()
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    return failed


def test_what_training_does_after_the_call_is_not_in_the_file(run: Path, saver: Saver, gate: threading.Event) -> None:
    """T11: weights, slots, state, and a view of another tensor, in two saves that share their memory."""
    base = torch.arange(12.0).view(3, 4)
    weights, slots = {"weight": torch.ones(5), "view": base.t()[1:]}, {"slot": torch.zeros(3, dtype=torch.int64)}
    state: dict[str, Any] = {"guard": {"failed": ["one"]}}
    for step in (1, 2):
        expected = {name: tensor.clone() for name, tensor in weights.items()}
        saver.save(step, weights, slots, state, None)
        assert not list_checkpoints(run / "checkpoints")[step - 1 :]
        weights["weight"] += 1
        base.mul_(-1)
        slots["slot"] += 1
        state["guard"]["failed"].append("another")
        gate.set()
        saver.wait()
        gate.clear()
        checkpoint = load_checkpoint(run)
        assert checkpoint.step == step
        assert all(torch.equal(checkpoint.model_state[name], tensor) for name, tensor in expected.items())
        assert checkpoint.optimizer_state["slot"].tolist() == [step - 1] * 3
        assert checkpoint.state["guard"] == {"failed": ["one", "another"][:step]}


def test_copies_are_made_into_the_same_memory_unless_the_tensor_is_another() -> None:
    staging = Staging()
    first = staging.copy("a ", {"x": torch.ones(3)})["x"]
    assert staging.copy("b ", {"x": torch.zeros(3)})["x"].data_ptr() != first.data_ptr()
    assert staging.copy("a ", {"x": torch.full((3,), 2.0)})["x"].data_ptr() == first.data_ptr()
    assert first.tolist() == [2, 2, 2]
    assert staging.copy("a ", {"x": torch.ones(2, dtype=torch.int64)})["x"].tolist() == [1, 1]


def test_one_save_is_in_flight_and_the_next_waits_for_it(run: Path, saver: Saver, gate: threading.Event) -> None:
    saver.save(1, {"weight": torch.ones(1)}, {}, {}, None)
    assert saver.has(1)
    assert not saver.has(2)
    waiting = threading.Thread(target=saver.save, args=(2, {"weight": torch.full((1,), 2.0)}, {}, {}, None))
    waiting.start()
    time.sleep(0.05)
    assert waiting.is_alive()
    assert not list_checkpoints(run / "checkpoints")
    gate.set()
    waiting.join(20)
    saver.wait()
    assert saver.saved == [1, 2]
    for path in list_checkpoints(run / "checkpoints"):  # the memory of the first was not taken from it
        assert load_checkpoint(path).model_state["weight"].item() == int(path.name[5:])
    assert saver.has(2)


def test_a_full_disk_is_reported_once_and_leaves_earlier_checkpoints(
    run: Path, saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T2."""
    with saver:
        saver.save(1, {"weight": torch.ones(1)}, {}, {}, Score(1, 2.0, 64))
        saver.wait()
        with monkeypatch.context() as patched:
            fill_the_disk(2, patched)
            saver.save(2, {"weight": torch.ones(1)}, {}, {}, Score(2, 1.0, 64))
            while saver.busy:
                time.sleep(0.001)
            with pytest.raises(UserError, match=r"step-000002: No space left.*step-000001, is intact.*make room"):
                saver.check()
        saver.check()
    assert load_checkpoint(run).step == 1
    assert read_best(run) == Score(1, 2.0, 64)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000001"]


@pytest.mark.parametrize("where", ["save", "check", "wait", "offer", "exit"])
def test_whatever_comes_next_raises_what_the_writer_could_not_do(
    run: Path, saver: Saver, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """T2."""

    def next_one() -> None:
        with saver:
            saver.save(1, {"weight": torch.ones(1)}, {}, {}, None)
            while saver.busy:
                time.sleep(0.001)
            arguments = {"save": (2, {}, {}, {}, None), "offer": (None,)}.get(where, ())
            if where != "exit":
                getattr(saver, where)(*arguments)

    fill_the_disk(1, monkeypatch)
    with pytest.raises(UserError, match=r"step-000001: No space left on device\. There is no earlier checkpoint"):
        next_one()


def test_the_error_that_ends_a_run_is_not_hidden_by_a_failed_save(
    saver: Saver, story: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_the_disk(1, monkeypatch)

    def train() -> None:
        with saver:
            saver.save(1, {"weight": torch.ones(1)}, {}, {}, None)
            raise UserError("the reason")

    with pytest.raises(UserError, match="the reason"):
        train()
    assert "warning: cannot write" in story.getvalue()


def test_pruning_beside_training_keeps_the_newest_good_ones_and_the_best(run: Path, saver: Saver) -> None:
    """T8: a newer one that is damaged does not count, whichever process wrote it."""
    for step in range(1, 4):
        saver.save(step, {"weight": torch.ones(1)}, {}, {}, Score(step, float(step), 64))
    saver.wait()
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == [
        "step-000001", "step-000002", "step-000003",
    ]  # fmt: skip
    for step in (2, 3):
        path = run / "checkpoints" / f"step-{step:06d}" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    saver.save(4, {"weight": torch.ones(1)}, {}, {}, None)
    saver.wait()
    assert list_checkpoints(run / "checkpoints")[0].name == "step-000001"
    assert load_checkpoint(run).step == 4


def test_time_for_the_last_save_includes_what_is_left_of_the_one_in_flight(saver: Saver, gate: threading.Event) -> None:
    saver.seconds = 1000.0
    assert saver.expected_seconds() == 1000.0
    saver.save(1, {"weight": torch.ones(1)}, {}, {}, None)
    assert 1900 < saver.expected_seconds() < 2000
    gate.set()
    saver.wait()
    assert saver.expected_seconds() < 20


# --- in a run


def test_a_run_logs_how_long_saves_took_and_how_long_it_waited_for_them(
    tiny_config: Make, folder: Path, display: Progress, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Corpus.batch

    def open_at_eight(self: Corpus, first: int, *arguments: Any, **options: Any) -> Any:
        if first == 8 * 4:
            time.sleep(0.2)
            gate.set()
        if first == 10 * 4:
            time.sleep(0.2)
        return draw(self, first, *arguments, **options)

    monkeypatch.setattr(Corpus, "batch", open_at_eight)
    for kind in ("background", "blocking"):  # for the second the gate is open from the beginning
        config = tiny_config(trainer={"save": kind, "checkpoint_every": 6, "eval_every": 100})
        training.begin(config, named_run(kind), display=display)
        records = read_metrics(Path(f"runs/{kind}/metrics.jsonl"))
        saves = {record["saved_step"]: record for record in records if "saved_step" in record}
        assert list(saves) == [6, 12]
        took, held = saves[6]["save_seconds"], saves[6]["save_held_seconds"]
        assert took == held if kind == "blocking" else took - held > 0.2


def test_a_disk_that_fills_up_in_a_run_stops_it_and_it_goes_on_from_the_checkpoint_before(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T2: the error comes at the next step, and the run is still the run in one."""
    config = tiny_config(trainer={**BACKGROUND, "eval_every": 100, "steps": 14})
    training.begin(config, named_run("whole"), display=display)
    with monkeypatch.context() as patched:
        tenth = threading.Event()
        failed = fill_the_disk(9, patched, tenth)  # the six of the first save and the two of the pointer succeed
        draw, drawn = Corpus.batch, []

        def wait_for_it(self: Corpus, first: int, *arguments: Any, **options: Any) -> Any:
            drawn.append(first // 4)
            if first == 10 * 4:
                tenth.set()
                assert failed.wait(20)
                time.sleep(0.3)  # the unfinished checkpoint is deleted
            return draw(self, first, *arguments, **options)

        patched.setattr(Corpus, "batch", wait_for_it)
        with pytest.raises(UserError, match=r"No space left on device.*step-000005, is intact"):
            training.begin(config, named_run("parts"), display=display)
    assert drawn == list(range(11))
    assert load_checkpoint("runs/parts").step == 5
    assert training.resume(named_run("parts"), display=display).complete
    whole, parts = load_checkpoint("runs/whole"), load_checkpoint("runs/parts")
    assert whole.state["tokens_digest"] == parts.state["tokens_digest"]
    assert all(torch.equal(tensor, parts.model_state[name]) for name, tensor in whole.model_state.items())


def test_the_lock_of_a_run_that_failed_is_held_until_its_save_is_done(
    tiny_config: Make, folder: Path, display: Progress, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Corpus.batch

    def fail_at_six(self: Corpus, first: int, *arguments: Any, **options: Any) -> Any:
        if first == 6 * 4:
            threading.Timer(0.2, gate.set).start()
            raise UserError("no more text")
        return draw(self, first, *arguments, **options)

    monkeypatch.setattr(Corpus, "batch", fail_at_six)
    with pytest.raises(UserError, match="no more text"):
        training.begin(tiny_config(trainer=BACKGROUND), named_run("a"), display=display)
    assert gate.is_set()
    assert load_checkpoint("runs/a").step == 5


def test_a_signal_during_a_save_in_the_background_ends_with_a_good_checkpoint(
    tiny_config: Make, folder: Path, display: Progress, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T24."""
    draw = Corpus.batch

    def draw_and_send(self: Corpus, first: int, *arguments: Any, **options: Any) -> Any:
        if first == 6 * 4 and not gate.is_set():  # while that of step 5 is not yet written
            os.kill(os.getpid(), signal.SIGTERM)
            gate.set()
        return draw(self, first, *arguments, **options)

    monkeypatch.setattr(Corpus, "batch", draw_and_send)
    outcome = training.begin(tiny_config(trainer=BACKGROUND), named_run("a"), display=display)
    assert (outcome.step, outcome.exit_code) == (7, 143)
    assert [path.name for path in list_checkpoints(Path("runs/a/checkpoints"))] == ["step-000005", "step-000007"]
    assert load_checkpoint("runs/a", lambda text: pytest.fail(text)).step == 7
    training.resume(named_run("a"), display=display)
    training.begin(tiny_config(), named_run("b"), display=display)
    one, other = (load_checkpoint(f"runs/{name}").model_state["head.weight"] for name in "ab")
    assert torch.equal(one, other)


LEAVING = """
import sys, time
from pathlib import Path
import torch
from adaptive_lm.train.run.checkpoints import saver as saving
from adaptive_lm.train.config.run_config import make_config
from adaptive_lm.train.system.progress import Progress
from adaptive_lm.train.run.folder import Run
write = saving.save_checkpoint
def slow(*arguments):
    time.sleep(1)
    return write(*arguments)
saving.save_checkpoint = slow
saver = saving.Saver(make_config({"trainer": {"save": "background"}}), Run(Path(sys.argv[1])), Progress(), [], 0.0)
saver.save(3, {"weight": torch.ones(4)}, {}, {}, None)
print(saver.saved)
"""


def test_a_process_that_ends_waits_for_the_save_in_flight(run: Path) -> None:
    """T12: even if nothing waited for it."""
    done = subprocess.run([sys.executable, "-c", LEAVING, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert load_checkpoint(run).step == 3


def saves_slowly() -> None:
    """Make the save of step 10 take a minute after its first file."""
    write = saving.save_checkpoint

    def slow(folder: Path, step: int, *arguments: Any) -> Path:
        if step == 10:
            (folder / ".writing-step-000010-1").mkdir()
            print("saving", flush=True)
            time.sleep(60)
        return write(folder, step, *arguments)

    saving.save_checkpoint = slow


@needs_fork
def test_a_second_signal_while_a_save_is_waited_for_ends_at_once_with_every_file_intact(
    tiny_config: Make, folder: Path, display: Progress
) -> None:
    """T25, T28: the save takes longer than the user waits."""
    Path("tiny.yaml").write_text(tiny_config(trainer={**BACKGROUND, "steps": 10**6}).to_yaml())
    with Fork(["train", "tiny.yaml", "--name", "a"], saves_slowly) as process:
        assert process.stdout.readline() == "saving\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(1)  # it finishes the step, and waits for the save
        assert process.poll() is None
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert time.monotonic() - started < 20
    assert process.returncode == 143
    assert load_checkpoint("runs/a").step == 5
    training.resume(named_run("a"), stop_at=12, display=display)
    assert load_checkpoint("runs/a").step == 12
