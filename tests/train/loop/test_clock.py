"""The progress of a run, and a warm-up counted in steps, tokens or epochs."""

import itertools
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import RunConfig
from adaptive_lm.train.data import prepare
from adaptive_lm.train.loop.clock import Clock
from adaptive_lm.train.loop.figures.heldout import Heldout
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint, read_checkpoint
from adaptive_lm.train.run.checkpoints.names import list_checkpoints
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.run.metrics import read_metrics
from adaptive_lm.train.system.progress import Progress

Make = Callable[..., RunConfig]


def rates(name: str) -> list[float]:
    return [record["lr"] for record in read_metrics(Path("runs") / name / "metrics.jsonl")]


def test_a_warm_up_in_steps_tokens_or_epochs_equals_one_of_the_same_share(
    tiny_config: Make, folder: Path, display: Progress
) -> None:
    """Six of twelve steps of 4 x 32 tokens; the cosine continues where the warm-up ended."""
    corpus = prepare(tiny_config().data, tiny_config().tokenizer, seed=0, log=lambda _: None)
    same: dict[str, dict[str, Any]] = {
        "share": {"warmup_share": 0.5},
        "steps": {"warmup_steps": 6},
        "tokens": {"warmup_tokens": 6 * 4 * 32},
        "epochs": {"warmup_epochs": 6 * 4 / corpus.epoch(0, 32)},
    }
    for name, warm in same.items():
        config = tiny_config(schedule={"kind": "cosine", **warm})
        training.begin(config, named_run(name), display=display)
    for name in ("steps", "tokens", "epochs"):
        assert rates(name)[:6] == pytest.approx(rates("share")[:6])
        # it ends with the first step that is beyond it, whose middle is half a step on
        assert rates(name)[6:] == pytest.approx(rates("share")[6:], abs=0.03 * max(rates("share")) * 3)
        assert rates(name)[6] == max(rates(name))


def test_a_warm_up_in_steps_has_this_many_steps_in_a_run_with_a_clock(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a second passes at each call of the clock."""
    seconds = itertools.count(0, 0.5)
    monkeypatch.setattr(Clock, "now", staticmethod(lambda: next(seconds)))
    config = tiny_config(
        trainer={"steps": None, "max_seconds": 150.0, "eval_every": 1000, "checkpoint_every": 1000},
        schedule={"kind": "cosine", "warmup_steps": 10},
    )
    training.begin(config, named_run("a"), display=display)
    found = rates("a")
    peak = config.optimizer.lr
    assert found[:10] == pytest.approx([peak * (step + 0.5) / 10 for step in range(10)])
    assert len(found) > 20
    assert found[10] == pytest.approx(peak)
    assert all(a >= b for a, b in pairwise(found[10:]))
    assert found[-1] < found[10] / 2


@pytest.mark.parametrize(
    "warm", [{"warmup_steps": 5}, {"warmup_tokens": 600}, {"warmup_epochs": 0.1}], ids=["steps", "tokens", "epochs"]
)
def test_a_run_stopped_during_and_after_its_warm_up_resumes_bit_for_bit(
    tiny_config: Make, folder: Path, display: Progress, warm: dict[str, Any]
) -> None:
    """T13, T14, T17: where the warm-up ended is part of the checkpoint."""
    config = tiny_config(schedule={"kind": "cosine", **warm})
    training.begin(config, named_run("whole"), display=display)
    training.begin(config, named_run("parts"), stop_at=3, display=display)
    training.resume(named_run("parts"), stop_at=8, display=display)
    training.resume(named_run("parts"), display=display)
    assert rates("whole") == rates("parts")
    one, other = (load_checkpoint(Path("runs") / name) for name in ("whole", "parts"))
    assert all(torch.equal(one.model_state[name], value) for name, value in other.model_state.items())


def test_a_run_whose_time_ends_in_an_evaluation_is_complete_only_after_the_next_step(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed between these two saves must take the last step when it is resumed."""
    now = [0.0]
    monkeypatch.setattr(Clock, "now", staticmethod(lambda: now[0]))
    evaluate = Heldout.evaluate

    def late(self: Heldout, max_tokens: int | None) -> Any:
        now[0] += 500
        return evaluate(self, max_tokens)

    monkeypatch.setattr(Heldout, "evaluate", late)
    config = tiny_config(trainer={"steps": None, "max_seconds": 100.0, "eval_every": 4, "checkpoint_every": 4})
    training.begin(config, named_run("a"), display=display)
    found = {
        each.step: each.state["complete"] for each in map(read_checkpoint, list_checkpoints(named_run("a").checkpoints))
    }
    assert found == {4: False, 5: True}
