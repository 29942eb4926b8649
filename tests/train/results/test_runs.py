"""`adaptive runs` and `adaptive compare`: the outcomes of runs, read from their folders."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from adaptive_lm.contract.errors import UserError
from adaptive_lm.serve.cli import group
from adaptive_lm.train import training
from adaptive_lm.train.commands.runs import compare, runs
from adaptive_lm.train.config.run_config import RunConfig
from adaptive_lm.train.loop.trainer import Trainer
from adaptive_lm.train.results.summary import all_runs, changed, summary
from adaptive_lm.train.results.tables import setting
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.system.progress import Progress

Make = Callable[..., RunConfig]


LAYERS = ("layers.0", "layers.1", "embedding", "head", "rest")


def typed(command: click.Command, *arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


@pytest.fixture
def two(tiny_config: Make, folder: Path, display: Progress) -> None:
    """Train a complete run `a` and a stopped run `b` with another rate."""
    training.begin(tiny_config(), named_run("a"), display=display)
    training.begin(tiny_config(optimizer={"lr": 0.01}), named_run("b"), stop_at=7, display=display)


def test_a_summary_has_the_progress_the_losses_and_the_cost(two: None) -> None:
    one, other = summary(Path("runs/a")), summary(Path("runs/b"))
    assert (one.state, one.step, one.steps, one.skipped) == ("complete", 12, 12, 0)
    assert (other.state, other.step, other.steps) == ("stopped", 7, 12)
    records = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    assert one.loss == pytest.approx(sum(sorted(record["loss"] for record in records[-10:])[4:6]) / 2)
    assert one.val_loss == records[-1]["val_loss"]
    assert other.val_loss is not None  # the last that was measured, at step 5
    assert one.usage == {"experts_per_token": records[-1]["experts_per_token"], "layers_per_token": 2.0}
    assert one.seconds == records[-1]["seconds"]


def test_the_state_tells_a_run_in_training_from_one_that_was_killed(two: None) -> None:
    run = named_run("b")
    with run:
        assert summary(Path("runs/b")).state == "training"
    assert summary(Path("runs/b")).state == "stopped"
    hold = (
        "import time; from adaptive_lm.train.run.folder import named_run\n"
        "with named_run('b'):\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert summary(Path("runs/b")).state == "training"
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert "process" in Path("runs/b/lock").read_text()  # its name is still there, its lock is not
    assert summary(Path("runs/b")).state == "stopped"


def test_a_summary_does_not_lock_the_run(two: None, display: Progress) -> None:
    summary(Path("runs/b"))
    assert training.resume(named_run("b"), display=display).complete


def test_a_run_without_a_checkpoint_or_a_record_is_listed(two: None) -> None:
    empty = Path("runs/empty")
    empty.mkdir()
    (empty / "config.yaml").write_text(Path("runs/a/config.yaml").read_text())
    Path("runs/no-run").mkdir()
    found = {one.name: one for one in all_runs()}
    assert set(found) == {"a", "b", "empty"}
    assert (found["empty"].state, found["empty"].step, found["empty"].loss) == ("no checkpoint", 0, None)
    assert "empty" in typed(runs).stdout


def test_a_run_that_died_before_its_first_checkpoint_is_begun_again_as_runs_says(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "save", die)
        for name in "abc":
            with pytest.raises(KeyboardInterrupt):
                training.begin(tiny_config(), named_run(name), display=display)
    assert Path("runs/a/metrics.jsonl").read_text()
    done = typed(runs)
    assert [line.split()[:3] for line in done.stdout.splitlines()[1:]] == [[name, "no", "checkpoint"] for name in "abc"]
    advice = r"^a died before its first checkpoint; begin it again: adaptive (.*?);"
    again = re.search(advice, done.stderr, re.MULTILINE)
    assert again is not None, done.stderr
    with pytest.raises(UserError, match=rf"nothing to resume; begin it again: adaptive {re.escape(again[1])}$"):
        training.resume(named_run("a"), display=display)
    assert CliRunner().invoke(group, again[1].split()).exit_code == 0
    assert training.begin(tiny_config(), named_run("b"), display=display).complete  # the same command, too
    pruned = typed(runs, "--prune")
    assert "deleted runs/c\n" in pruned.stderr
    assert [line.split()[:2] for line in pruned.stdout.splitlines()[1:]] == [["a", "complete"], ["b", "complete"]]
    assert sorted(path.name for path in Path("runs").iterdir()) == ["a", "b"]


def test_pruning_spares_a_run_that_is_trained_now(two: None) -> None:
    young = named_run("young")
    with young:
        (young.path / "config.yaml").write_text(Path("runs/a/config.yaml").read_text())
        assert "deleted" not in typed(runs, "--prune").stderr
        assert young.path.is_dir()
    assert "deleted runs/young" in typed(runs, "--prune").stderr


def test_skipped_steps_are_counted_and_their_losses_left_out(two: None) -> None:
    before = summary(Path("runs/a"))
    with Path("runs/a/metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 12, "loss": 99.0, "skipped": True}) + "\n")
    assert summary(Path("runs/a")) == before
    state = Path("runs/a/checkpoints/step-000012/state.json")
    state.write_text(json.dumps({**json.loads(state.read_text()), "bad_steps": 3}))
    assert summary(Path("runs/a")).skipped == 3


def test_alarms_are_counted_and_each_layer_has_its_own_curve(two: None) -> None:
    lines = Path("runs/a/metrics.jsonl").read_text().splitlines()
    record = json.loads(lines[-1])
    lines[-1] = json.dumps({**record, "alarms": ["grad_norm/layers.0 is 3, above 2", "router_load/layers.1 is 0"]})
    Path("runs/a/metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert [summary(Path("runs") / name).alarms for name in ("a", "b")] == [2, 0]
    assert "alarms" in typed(runs).output
    drawn = typed(compare, "a", "--metric", "grad_norm/", "--plot", "layers.png")
    assert [layer for layer in LAYERS if f" a {layer}" not in drawn.output] == []
    assert Path("layers.png").read_bytes()[:4] == b"\x89PNG"
    assert drawn.output.count("grad_norm/ by step") == 1


def test_only_the_settings_that_differ_are_listed(two: None) -> None:
    assert changed([summary(Path("runs/a")), summary(Path("runs/b"))]) == {"optimizer.lr": [0.03, 0.01]}
    assert changed([summary(Path("runs/a"))] * 2) == {}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "-"),
        (0.030, "0.03"),
        ([1.5, 2.0], "[1.5, 2]"),
        ([{"from_share": 0.955, "from_step": None, "batch_size": 48}], "[{from_share: 0.955, batch_size: 48}]"),
    ],
)
def test_a_setting_is_shown_as_it_would_be_typed(value: object, words: str) -> None:
    assert setting(value) == words


def test_runs_prints_a_row_each(two: None) -> None:
    done = typed(runs)
    assert done.exit_code == 0
    head, first, second = done.stdout.splitlines()
    assert head.split()[:4] == ["run", "state", "steps", "loss"]
    assert first.split()[:3] == ["a", "complete", "12/12"]
    assert second.split()[:3] == ["b", "stopped", "7/12"]
    objects = [json.loads(line) for line in typed(runs, "--json").stdout.splitlines()]
    assert [(one["name"], one["state"], one["layers_per_token"]) for one in objects] == [
        ("a", "complete", 2.0),
        ("b", "stopped", 2.0),
    ]


def test_compare_prints_settings_outcomes_and_curves_and_draws_them(two: None) -> None:
    done = typed(compare, "a", "b", "--plot", "c.png")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["setting", "a", "b"]
    assert lines[1].split() == ["optimizer.lr", "0.03", "0.01"]
    assert ["state", "complete", "stopped"] in [line.split() for line in lines]
    assert lines[-2:] == ["a a", "b b"]
    assert Path("c.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(typed(compare, "a", "b", "--json").stdout)
    assert found["settings"] == {"optimizer.lr": [0.03, 0.01]}
    assert [one["step"] for one in found["runs"]] == [12, 7]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "nix"], "there is no run runs/nix"),
        (["a", "../x"], "--name"),
        (["a", "b", "--metric", "lose"], "none of these runs has measured 'lose'"),
    ],
)
def test_mistakes_are_errors_without_a_traceback(two: None, arguments: list[str], words: str) -> None:
    done = typed(compare, *arguments)
    assert isinstance(done.exception, UserError)
    assert words in str(done.exception)


def test_mistakes_on_the_command_line_are_usage_errors(folder: Path) -> None:
    assert typed(compare).exit_code == 2
    assert typed(compare, "a", "--plot", "c.jpeg").exit_code == 2
    assert "train one: adaptive train" in str(typed(runs).exception)
    assert typed(runs, "--json").stdout == ""
