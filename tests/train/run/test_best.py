"""The best checkpoint: pointed at, kept, and found again whatever happens (scenarios T1, T2, T4, T8, T17, T23)."""

import errno
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from adaptive_lm.contract.errors import UserError
from adaptive_lm.serve.cli import group
from adaptive_lm.train import training
from adaptive_lm.train.commands import report
from adaptive_lm.train.config.run_config import RunConfig
from adaptive_lm.train.loop.figures.evaluate import Evaluation
from adaptive_lm.train.loop.trainer import Trainer
from adaptive_lm.train.results.summary import summary
from adaptive_lm.train.run.checkpoints.best import POINTER, Score, checkpoint_of, point_at, read_best
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint, prune
from adaptive_lm.train.run.checkpoints.names import list_checkpoints
from adaptive_lm.train.run.checkpoints.saver import Saver
from adaptive_lm.train.run.folder import Run, named_run
from adaptive_lm.train.run.metrics import read_metrics
from adaptive_lm.train.system.progress import Progress

Make = Callable[..., RunConfig]
Save = Callable[..., Path]


@pytest.fixture
def saver(run: Path, tiny_config: Make, display: Progress) -> Saver:
    """Make a saver that keeps the newest two checkpoints, and the best."""
    return Saver(tiny_config(trainer={"keep_checkpoints": 2}), Run(run), display, [], 0.0)


def put(saver: Saver, step: int, loss: float | None = None, tokens: int = 64) -> None:
    weights = {"weight": torch.full((8,), float(step))}
    saver.save(step, weights, {}, {"tokens_seen": 0}, None if loss is None else Score(step, loss, tokens))


def kept(run: Path) -> list[int]:
    return [int(path.name[5:]) for path in list_checkpoints(run / "checkpoints")]


def test_the_newest_and_the_best_are_kept(run: Path, saver: Saver) -> None:
    for step, loss in enumerate([3.0, 1.0, 2.0, 2.5, 2.4, 2.3], 1):
        put(saver, step, loss)
    assert kept(run) == [2, 5, 6]
    assert read_best(run) == Score(2, 1.0, 64)
    assert load_checkpoint(Score(2, 1.0, 64).place(run)).model_state["weight"][0] == 2
    put(saver, 7, 0.5)
    put(saver, 8, 0.6)
    assert kept(run) == [7, 8]  # the one that was the best has nothing more to be kept for
    put(saver, 9, 0.5)
    assert saver.best == Score(7, 0.5, 64)  # as good is not better


def test_a_checkpoint_without_a_loss_or_with_none_that_is_a_number_is_never_the_best(run: Path, saver: Saver) -> None:
    put(saver, 1)
    put(saver, 2, float("nan"))
    assert read_best(run) is None
    assert load_checkpoint(run).state["scored"] is None
    put(saver, 3, 5.0)
    put(saver, 4, float("nan"))
    put(saver, 5, float("-inf"))
    assert read_best(run) == Score(3, 5.0, 64)
    saver.offer(Score(99, 0.1, 64))  # which was never saved
    assert read_best(run) == Score(3, 5.0, 64)


def test_losses_over_other_numbers_of_tokens_do_not_compare(run: Path, saver: Saver) -> None:
    put(saver, 1, 1.0, tokens=64)
    put(saver, 2, 2.0, tokens=640)
    assert read_best(run) == Score(2, 2.0, 640)


def test_pruning_never_deletes_the_only_good_checkpoint_nor_the_best(run: Path, save: Save) -> None:
    """T8: of those that are kept as the newest, none is good."""
    for step in range(1, 6):
        save(step)
    for step in (4, 5):
        path = run / "checkpoints" / f"step-{step:06d}" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    prune(run / "checkpoints", 1, warning=lambda _: None, best=run / "checkpoints" / "step-000001")
    assert kept(run) == [1, 3, 4, 5]
    assert load_checkpoint(run, lambda _: None).step == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format_version": 9}', '{"format_version": 1, "step": 2}'])
def test_a_pointer_that_cannot_be_read_points_at_nothing(run: Path, saver: Saver, content: str) -> None:
    put(saver, 1, 1.0)
    (run / POINTER).write_text(content)
    assert read_best(run) is None


def test_a_pointer_to_a_checkpoint_that_is_gone_points_at_nothing(run: Path, saver: Saver) -> None:
    put(saver, 1, 1.0)
    point_at(run, Score(7, 0.1, 64))
    assert read_best(run) is None


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, BaseException], None]]:
    """Return a function that makes the n-th sync from now raise an exception: a kill, or a full disk."""
    real = os.fsync

    def arm(number: int, error: BaseException) -> None:
        calls = iter(range(1, 1000))

        def sync(handle: int) -> None:
            if next(calls) == number:
                raise error
            real(handle)

        monkeypatch.setattr(os, "fsync", sync)

    yield arm
    monkeypatch.setattr(os, "fsync", real)


def test_a_kill_anywhere_in_a_save_leaves_a_best_that_loads_and_a_resume_that_finds_the_better_one(
    run: Path, tiny_config: Make, display: Progress, cut: Callable[..., None]
) -> None:
    """T1: before each of the syncs of the checkpoint and of the pointer."""
    config, states = tiny_config(trainer={"keep_checkpoints": 1}), set()
    for number in range(1, 20):
        first = Saver(config, Run(run), display, [], 0.0)
        put(first, number * 10, 10.0 - number)
        cut(number, KeyboardInterrupt())
        try:
            put(first, number * 10 + 1, 9.5 - number)
        except KeyboardInterrupt:
            whole = False
        else:
            whole = True
        cut(0, KeyboardInterrupt())
        best, newest = read_best(run), load_checkpoint(run, lambda text: pytest.fail(text))
        assert best is not None
        assert load_checkpoint(best.place(run)).step == best.step
        states.add((newest.step - number * 10, best.step - number * 10))
        again = Saver(config, Run(run), display, [newest.step], 0.0)
        again.offer(Score(newest.step, **newest.state["scored"]))  # as a resumed trainer does
        assert again.best is not None
        assert again.best.step == newest.step
        if whole:
            break
    assert states == {(0, 0), (1, 0), (1, 1)}


def test_a_full_disk_at_the_pointer_leaves_the_old_one_and_every_checkpoint(
    run: Path, saver: Saver, cut: Callable[..., None]
) -> None:
    """T2."""
    put(saver, 1, 2.0)
    cut(7, OSError(errno.ENOSPC, "No space left on device"))  # four files and two folders are synced before it
    with pytest.raises(UserError, match=r"best\.json: No space left on device\. The checkpoints are intact"):
        put(saver, 2, 1.0)
    assert read_best(run) == Score(1, 2.0, 64)
    assert kept(run) == [1, 2]
    assert [path.name for path in run.iterdir() if path.name.endswith(".tmp")] == []


def test_a_best_checkpoint_that_was_damaged_is_the_best_no_longer_and_says_so(
    run: Path, saver: Saver, tiny_config: Make, display: Progress, story: io.StringIO
) -> None:
    """T4."""
    put(saver, 1, 1.0)
    put(saver, 2, 2.0)
    weights = run / "checkpoints" / "step-000001" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    resumed = Saver(tiny_config(), Run(run), display, [2], 0.0)
    assert resumed.best is None
    assert "damaged checkpoint" in story.getvalue()
    assert "it is no longer the best" in story.getvalue()
    resumed.offer(Score(2, 2.0, 64))
    assert read_best(run) == Score(2, 2.0, 64)


# --- in a run


def scripted(losses: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int | None]]:
    """Make evaluations return `losses` by step, and collect their calls as (step, tokens) in the list."""
    asked: list[tuple[int, int | None]] = []

    def evaluate(self: Any, max_tokens: int | None) -> Evaluation:
        asked.append((self.counters.step, max_tokens))
        return Evaluation(losses[self.counters.step], 1.0, {"experts_per_token": 1.0, "layers_per_token": 2.0}, 64)

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    return asked


RISING = {4: 2.0, 5: 1.5, 8: 1.0, 10: 1.1, 12: 1.2, 15: 1.3, 16: 1.4, 18: 9.0}


def test_what_is_saved_is_scored_and_the_best_outlives_the_newest(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scripted(RISING, monkeypatch)
    trainer = {"steps": 18, "eval_every": 5, "checkpoint_every": 4, "keep_checkpoints": 1}
    training.begin(tiny_config(trainer=trainer), named_run("a"), display=display)
    assert kept(Path("runs/a")) == [8, 18]
    assert read_best(Path("runs/a")) == Score(8, 1.0, 64)
    # the last is scored twice: over all tokens for the record, and over as many as the others to be compared
    assert asked == [*((step, 64) for step in sorted(RISING)[:-1]), (18, 256), (18, 64)]
    scored = [record["step"] for record in read_metrics(Path("runs/a/metrics.jsonl")) if record["val_loss"] is not None]
    assert scored == sorted(RISING)


def test_the_last_checkpoint_can_be_the_best(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted({**RISING, 18: 0.5}, monkeypatch)
    trainer = {"steps": 18, "checkpoint_every": 4, "keep_checkpoints": 1}
    training.begin(tiny_config(trainer=trainer), named_run("a"), display=display)
    assert read_best(Path("runs/a")) == Score(18, 0.5, 64)


def test_a_resumed_run_knows_the_best_of_its_first_part(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T17: and the checkpoint of a stop, which the run in one does not have, is not among those that compete."""
    scripted({**RISING, 10: 0.1}, monkeypatch)
    config = tiny_config(trainer={"steps": 18, "eval_every": 5, "checkpoint_every": 4, "keep_checkpoints": 1})
    training.begin(config, named_run("a"), stop_at=10, display=display)
    assert kept(Path("runs/a")) == [8, 10]
    training.resume(named_run("a"), display=display)
    assert kept(Path("runs/a")) == [8, 18]
    assert read_best(Path("runs/a")) == Score(8, 1.0, 64)


def test_a_run_killed_before_its_pointer_points_again_when_it_goes_on(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T1, T17: the checkpoint was written, and then the process ended."""
    scripted(RISING, monkeypatch)
    config = tiny_config(trainer={"steps": 18, "eval_every": 5, "checkpoint_every": 4, "keep_checkpoints": 1})
    training.begin(config, named_run("a"), stop_at=8, display=display)
    Path("runs/a/best.json").unlink()
    training.resume(named_run("a"), display=display)
    assert kept(Path("runs/a")) == [8, 18]


def test_a_run_that_begins_again_forgets_the_best_of_the_old_one(
    tiny_config: Make, folder: Path, display: Progress
) -> None:
    training.begin(tiny_config(), named_run("a"), display=display)
    assert read_best(Path("runs/a")) is not None
    training.begin(tiny_config(trainer={"steps": 3}), named_run("a"), overwrite=True, stop_at=2, display=display)
    assert read_best(Path("runs/a")) is None


def test_a_checkpoint_from_before_losses_were_kept_in_it_goes_on(
    tiny_config: Make, folder: Path, display: Progress
) -> None:
    """T23."""
    training.begin(tiny_config(), named_run("a"), stop_at=5, display=display)
    path = load_checkpoint("runs/a").path
    state = json.loads((path / "state.json").read_text())
    del state["scored"]
    complete = json.loads((path / "complete.json").read_text())
    data = json.dumps(state).encode()
    (path / "state.json").write_bytes(data)
    complete["files"]["state.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "complete.json").write_text(json.dumps(complete))
    Path("runs/a/best.json").unlink()
    assert training.resume(named_run("a"), display=display).complete
    assert read_best(Path("runs/a")) is not None


def test_runs_and_train_name_a_best_checkpoint_that_is_not_the_last(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(RISING, monkeypatch)
    config = tiny_config(trainer={"steps": 18, "eval_every": 5, "checkpoint_every": 4, "keep_checkpoints": 1})
    outcome = training.begin(config, named_run("a"), display=display)
    found = summary(Path("runs/a")).best_checkpoint
    assert found == Score(8, 1.0, 64)
    row = CliRunner().invoke(group, ["runs"]).stdout.splitlines()
    assert row[0].split()[-2:] == ["best", "at"]
    assert row[1].split()[-2:] == ["8", "(1.0000)"]
    said = io.StringIO()
    monkeypatch.setattr(report.click, "echo", lambda text, err=False: said.write(text + "\n"))
    report.report(outcome)
    assert "export that one: adaptive export a --checkpoint best\n" in said.getvalue()
    assert load_checkpoint(checkpoint_of(Path("runs/a"), "best")).step == 8
