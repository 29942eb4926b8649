"""Ctrl-C and SIGTERM, wherever they come (T24-T26, T28)."""

import io
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from support.forks import Fork, needs_fork

from adaptive_lm.serve.cli import group
from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import RunConfig
from adaptive_lm.train.data import Corpus
from adaptive_lm.train.loop.figures import evaluate as evaluation
from adaptive_lm.train.run.checkpoints import saver
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.run.metrics import read_metrics
from adaptive_lm.train.system.progress import Progress

Make = Callable[..., RunConfig]


def at_step(number: int, sent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a signal while step `number` (0, 1, ...) draws its batch."""
    draw = Corpus.batch

    def draw_and_send(self: Corpus, first: int, batch_size: int, length: int) -> Any:
        if first == number * batch_size:
            os.kill(os.getpid(), sent)
        return draw(self, first, batch_size, length)

    monkeypatch.setattr(Corpus, "batch", draw_and_send)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_leaves_a_run_that_goes_on(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch, sent: int
) -> None:
    """T24, T26; and the run in two parts is still the run in one."""
    before = signal.getsignal(sent)
    with monkeypatch.context() as patched:
        at_step(6, sent, patched)
        outcome = training.begin(tiny_config(), named_run("a"), display=display)
    assert (outcome.step, outcome.complete, outcome.exit_code) == (7, False, 128 + sent)
    assert signal.getsignal(sent) is before
    assert load_checkpoint("runs/a").step == 7
    assert training.resume(named_run("a"), display=display).step == 12
    training.begin(tiny_config(), named_run("b"), display=display)
    one, other = (load_checkpoint(f"runs/{name}").model_state["head.weight"] for name in "ab")
    assert torch.equal(one, other)


def test_a_signal_while_data_is_prepared_ends_at_once_and_the_same_command_starts_again(
    tiny_config: Make, folder: Path, display: Progress, story: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T24."""

    def interrupted(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    with monkeypatch.context() as patched:
        patched.setattr("adaptive_lm.train.training.steps.prepare", interrupted)
        outcome = training.begin(tiny_config(), named_run("a"), display=display)
    assert outcome.exit_code == 143
    assert "SIGTERM: nothing was trained yet; the same command starts again" in story.getvalue()
    assert training.begin(tiny_config(trainer={"steps": 1}), named_run("a"), display=display).complete


@pytest.mark.parametrize("final", [False, True], ids=["between", "at the end"])
def test_a_signal_during_an_evaluation_gives_it_up_and_saves(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch, final: bool
) -> None:
    """T24."""
    pad, calls = evaluation.pad_rows, 0

    def pad_and_send(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        os.kill(os.getpid(), signal.SIGTERM)
        return pad(*arguments)

    monkeypatch.setattr(evaluation, "pad_rows", pad_and_send)
    config = tiny_config(trainer={"steps": 3} if final else {})
    outcome = training.begin(config, named_run("a"), display=display)
    assert calls == 1
    assert (outcome.exit_code, outcome.evaluation, outcome.complete) == (143, None, final)
    assert load_checkpoint("runs/a").step == (3 if final else 5)
    assert len(read_metrics(Path("runs/a/metrics.jsonl"))) == (3 if final else 5)


def test_a_signal_during_a_save_lets_it_finish(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T24."""
    save = saver.save_checkpoint

    def save_and_send(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.undo()
        return save(*arguments)

    monkeypatch.chdir(folder)
    monkeypatch.setattr(saver, "save_checkpoint", save_and_send)
    runs = folder / "runs"
    outcome = training.begin(tiny_config(), named_run("a", runs), display=display)
    assert (outcome.step, outcome.exit_code) == (5, 143)
    assert load_checkpoint(runs / "a").step == 5


def draws_slowly() -> None:
    """Make the batch of the seventh step take a minute."""
    draw = Corpus.batch

    def slow(self: Corpus, first: int, batch_size: int, length: int) -> Any:
        if first == 6 * batch_size:
            print("drawing", flush=True)
            time.sleep(60)
        return draw(self, first, batch_size, length)

    Corpus.batch = slow  # type: ignore[method-assign]


@needs_fork
def test_the_second_signal_ends_at_once_with_every_file_intact(tiny_config: Make, folder: Path) -> None:
    """T25, T28: the step at hand would take a minute."""
    Path("tiny.yaml").write_text(tiny_config().to_yaml())
    with Fork(["train", "tiny.yaml", "--name", "a"], draws_slowly) as process:
        assert process.stdout.readline() == "drawing\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
    assert process.returncode == 143
    assert time.monotonic() - started < 5
    assert "SIGTERM: finishing the step, then saving runs/a; a second signal ends it immediately" in said
    assert load_checkpoint("runs/a").step == 5


@needs_fork
def test_ctrl_c_on_the_command_says_exactly_how_to_go_on(tiny_config: Make, folder: Path) -> None:
    """T26, through the command line; the printed command is then typed."""
    Path("tiny.yaml").write_text(tiny_config(trainer={"steps": 100_000, "log_every": 1}).to_yaml())
    with Fork(["train", "tiny.yaml", "--name", "a"]) as process:
        while not process.stderr.readline().startswith("step"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, said = process.communicate()
    assert process.returncode == 130, said
    step = load_checkpoint("runs/a").step
    assert step > 0
    typed = re.search(rf"saved at step {step}; resume with: adaptive (.*)", said)
    assert typed is not None, said
    assert out == "runs/a\n"
    again = CliRunner().invoke(group, [*typed[1].split(), "--stop-at", str(step + 3)])
    assert again.exit_code == 0, again.output
    assert load_checkpoint("runs/a").step == step + 3
