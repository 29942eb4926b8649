"""A run whose loss or weights stop being finite is no success, and what is left of it can be used."""

import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from adaptive_lm.contract.errors import UserError
from adaptive_lm.serve.cli import group
from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import RunConfig
from adaptive_lm.train.loop.divergence import all_finite, divergence, divergence_error, lower_rates, steps_without_loss
from adaptive_lm.train.loop.spike_guard import Guard
from adaptive_lm.train.optim.optimizer import OptimizerConfig, Optimizers
from adaptive_lm.train.results.summary import summary
from adaptive_lm.train.run.checkpoints.best import Score, point_at
from adaptive_lm.train.run.checkpoints.checkpoint import list_checkpoints, load_checkpoint
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.system.progress import Progress

Make = Callable[..., RunConfig]
DIVERGES = ["--set", "optimizer.lr=1e20", "--set", "trainer.checkpoint_every=1"]


@pytest.fixture
def recipe(tiny: dict[str, Any], folder: Path) -> str:
    Path("tiny.yaml").write_text(yaml.safe_dump({**tiny, "trainer": {**tiny["trainer"], "steps": 6}}))
    return "tiny.yaml"


def adaptive(*arguments: str) -> Result:
    return CliRunner().invoke(group, arguments)


def test_a_run_that_diverged_ends_with_an_error_and_a_cure_that_works(recipe: str) -> None:
    done = adaptive("train", recipe, "--name", "a", *DIVERGES)
    assert (done.exit_code, done.stdout) == (1, ""), done.output
    assert "next: adaptive export" not in done.stderr
    message = done.stderr.partition("error: ")[2]
    assert re.match(r"runs/a diverged: the loss is not finite from step [1-6] on, and the held-out loss is", message)
    assert summary(Path("runs/a")).state == "diverged"
    assert not summary(Path("runs/a")).holds
    again = adaptive("train", "--resume", "--name", "a")
    assert (again.exit_code, again.stderr) == (1, f"error: {message}")
    cure = re.search(r"the command that began it, with (--overwrite( --set \S+=[\d.e-]+)+)", message)
    assert cure is not None, message
    cured = adaptive("train", recipe, "--name", "a", *DIVERGES, *shlex.split(cure[1]))
    assert cured.exit_code == 0, cured.output
    assert summary(Path("runs/a")).state == "complete"


def test_the_last_finite_checkpoint_of_a_diverged_run_is_offered_for_export(recipe: str) -> None:
    every = ["--set", "trainer.checkpoint_every=1"]
    assert adaptive("train", recipe, "--name", "a", "--stop-at", "3", *every).exit_code == 0
    done = adaptive("train", "--resume", "--name", "a", "--override-resume", *DIVERGES)
    words = r"or export the checkpoint of step (\d+), .*: adaptive (export a --checkpoint best)$"
    offered = re.search(words, done.stderr)
    assert offered is not None, done.stderr
    best = load_checkpoint(f"runs/a/checkpoints/step-{int(offered[1]):06d}")
    assert math.isfinite(best.state["scored"]["val_loss"])
    exported = adaptive(*shlex.split(offered[2]))
    assert exported.exit_code == 0, exported.output
    last = adaptive("export", "a")
    assert last.exit_code == 1
    assert "runs/a diverged: the weights of step 6 give logits that are not finite. Train it again" in last.stderr
    assert last.stderr.endswith("adaptive export a --checkpoint best\n")


def test_a_checkpoint_that_learned_nothing_is_not_offered_for_export(recipe: str) -> None:
    every = ["--set", "trainer.checkpoint_every=1"]
    assert adaptive("train", recipe, "--name", "a", "--stop-at", "3", *every).exit_code == 0
    run = named_run("a")
    config = load_checkpoint(run.path).config
    chance = math.log(config.model.vocab_size)
    for loss, offered in ((chance - 0.1, True), (chance, False), (chance + 0.3, False)):
        point_at(run.path, Score(2, loss, 64))
        assert ("--checkpoint best" in str(divergence_error(run, config, "the loss is not finite"))) == offered


def test_runs_and_a_parent_say_that_a_run_diverged(recipe: str) -> None:
    adaptive("train", recipe, "--name", "a", *DIVERGES)
    listed = adaptive("runs")
    assert listed.stdout.splitlines()[1].split()[:2] == ["a", "diverged"]
    assert "a diverged; see why and what to do: adaptive train --resume --name a" in listed.stderr
    child = adaptive("train", recipe, "--name", "b", "--set", "parent=a", "--set", "gates.no_worse_than_parent=true")
    assert child.exit_code == 1
    assert "must not be worse than its parent runs/a, which diverged; name another with --set parent=" in child.stderr


def test_weights_that_are_not_finite_are_never_saved(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Optimizers.step

    def overflow(self: Optimizers) -> None:
        step(self)
        if overflow.calls == 3:
            next(iter(self.names.values()))[0].data.fill_(math.inf)
        overflow.calls += 1

    overflow.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(Optimizers, "step", overflow)
    config = tiny_config(trainer={"checkpoint_every": 2, "eval_every": 100})
    with pytest.raises(UserError, match=r"runs/a diverged: the weights are not finite at step 4\..* of step 2, whose"):
        training.begin(config, named_run("a"), display=display)
    assert [path.name for path in list_checkpoints(Path("runs/a/checkpoints"))] == ["step-000002"]
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert training.resume(named_run("a"), display=display).complete


def test_only_losses_at_the_end_that_are_not_finite_are_a_divergence() -> None:
    guard = Guard(RunConfig().trainer, OptimizerConfig())
    guard.skip(4, str(guard.check(math.nan)), "a.txt")
    assert divergence({"step": 4, "guard": guard.state()}, []) == "the loss is not finite from step 4 on"
    guard.skip(5, str(guard.check(3.0, math.inf)), "a.txt")
    assert divergence({"step": 5, "guard": guard.state()}, []) is None  # a gradient can overflow in a healthy run
    guard.skip(6, str(guard.check(math.inf)), "a.txt")
    guard.skip(7, str(guard.check(math.nan)), "a.txt")
    assert steps_without_loss(guard.failed) == 2
    assert divergence({"step": 7, "guard": guard.state()}, []) == "the loss is not finite from step 6 on"
    guard.accept(3.0, 1.0)
    assert divergence({"step": 8, "guard": guard.state()}, []) is None
    assert divergence({"step": 8}, []) is None  # of a version without a guard


@pytest.mark.parametrize(
    ("records", "diverged"),
    [
        ([{"step": 5, "val_loss": None}], False),  # not measured
        ([{"step": 5, "val_loss": None, "perplexity": None}], True),
        ([{"step": 5, "val_loss": None, "perplexity": 1e304}], True),  # infinite
        ([{"step": 5, "val_loss": None, "perplexity": None}, {"step": 6, "val_loss": 2.0, "perplexity": 7.4}], False),
        ([{"step": 5, "val_loss": 2.0, "perplexity": 7.4}, {"step": 6, "val_loss": None}], False),
    ],
)
def test_a_held_out_loss_that_is_not_finite_is_a_divergence(records: list[dict[str, Any]], diverged: bool) -> None:
    assert (divergence({"step": 6}, records) is not None) is diverged


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        ({"lr": 100.0}, "--set optimizer.lr=0.03 --set optimizer.adamw_lr=0.006"),
        ({"lr": 0.02, "adamw_lr": 0.001}, "--set optimizer.lr=0.01 --set optimizer.adamw_lr=0.0005"),
        ({"kind": "sgd"}, "--set optimizer.lr=0.05 --set optimizer.adamw_lr=0.006"),
        ({"kind": "adamw"}, "--set optimizer.adamw_matrix_lr=0.0015 --set optimizer.adamw_lr=0.006"),
    ],
)
def test_lower_rates_are_half_of_them_and_at_most_the_defaults(optimizer: dict[str, Any], settings: str) -> None:
    assert lower_rates(OptimizerConfig(**optimizer)) == settings


def test_weights_are_finite_or_not() -> None:
    assert all_finite([torch.ones(3), torch.zeros(2)])
    for value in (math.nan, math.inf, -math.inf):
        assert not all_finite([torch.ones(3), torch.tensor([0.0, value])])
