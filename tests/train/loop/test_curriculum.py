"""The curriculum: sparsity, layer dropout and exits at each step; an evaluation is not affected."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import RunConfig
from adaptive_lm.train.loop.curriculum import Curriculum
from adaptive_lm.train.loop.trainer import Trainer
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.run.metrics import read_metrics
from adaptive_lm.train.system.progress import Progress

Make = Callable[..., RunConfig]

DEEP = {"num_layers": 3, "vocab_size": 20, "depth": {"exit_layers": [0, 1], "layer_dropout": 0.4}}


def records(config: RunConfig, display: Progress) -> list[dict[str, Any]]:
    training.begin(config, named_run("a"), display=display)
    return read_metrics(Path("runs/a/metrics.jsonl"))


def test_a_dense_start_uses_every_expert_and_the_end_the_configured_average(
    tiny_config: Make, folder: Path, display: Progress
) -> None:
    config = tiny_config(
        schedule={"dense_share": 0.25, "sparsify_share": 0.5}, trainer={"steps": 60, "eval_every": 200}
    )
    found = records(config, display)
    assert [record["experts_per_token"] for record in found[:15]] == [4.0] * 15
    assert [record["sparsity"] for record in found[:15]] == [0.0] * 15
    assert found[29]["sparsity"] == pytest.approx((29.5 / 60 - 0.25) / 0.5)
    assert 1.7 < found[29]["experts_per_token"] < 3.9
    assert [record["sparsity"] for record in found[45:]] == [1.0] * 15
    assert sum(record["experts_per_token"] for record in found[45:]) / 15 == pytest.approx(1.6, abs=0.25)


def test_an_evaluation_sees_the_configured_averages_whatever_the_step_before_drew(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    evaluate = Trainer.evaluate

    def look(self: Trainer, max_tokens: int | None) -> Any:
        found = evaluate(self, max_tokens)
        seen.extend(router.sparsity for router in self.model.routers("experts"))
        return found

    monkeypatch.setattr(Trainer, "evaluate", look)
    found = records(tiny_config(schedule={"random_sparsity": [0.2, 0.9]}), display)
    assert set(seen) == {1.0}
    assert len({record["sparsity"] for record in found}) == 12  # and each step its own draw, after evaluations too
    assert all(0.2 <= record["sparsity"] <= 0.9 for record in found)


def test_an_exponential_layer_dropout_rises_over_the_run(tiny_config: Make) -> None:
    depth = {**DEEP["depth"], "layer_dropout_curriculum": "exponential"}  # type: ignore[dict-item]
    config = tiny_config(model={**DEEP, "depth": depth})
    model = Transformer(config.model)
    curriculum = Curriculum(config, model)
    rates = []
    for done in (0.0, 0.5, 1.0):
        curriculum.apply(0, done)
        rates.append(model.layer_dropout)
        assert curriculum.record["layer_dropout"] == model.layer_dropout
    assert rates == pytest.approx([0.0, 0.4 * (math.sqrt(2) - 1), 0.4])  # LayerSkip, eq. 3


def test_rotating_exits_learn_in_turn(tiny_config: Make) -> None:
    config = tiny_config(
        model={**DEEP, "depth": {"exit_layers": [0, 1]}}, losses={"exit_curriculum": "rotational", "exit_loss": 1.0}
    )
    torch.manual_seed(0)
    model = Transformer(config.model)
    curriculum = Curriculum(config, model)
    ids, scored = torch.randint(20, (2, 9)), torch.ones(2, 8, dtype=torch.bool)
    found = []
    for step in range(4):
        curriculum.apply(step, 0.9)
        _, parts = curriculum.loss(model(ids[:, :-1]), ids[:, 1:], scored)
        found.append((dict(curriculum.record), float(parts["exit_loss"])))
    assert [record for record, _ in found[:2]] == [{"exit_weight.0": 1.0}, {"exit_weight.1": 1.0}]
    assert found[:2] == found[2:]
    assert found[0][1] != found[1][1]


def test_what_the_config_does_not_schedule_is_not_recorded(tiny_config: Make) -> None:
    config = tiny_config(model={"vocab_size": 20})
    curriculum = Curriculum(config, Transformer(config.model))
    curriculum.apply(3, 0.5)
    assert curriculum.record == {}
