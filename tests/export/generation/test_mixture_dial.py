"""The dial of a trained mixture with a cap on its experts, as Qwen3-MoE has: `calibrate` chooses between two rules."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from support.runs import text, write_run
from torch.nn import functional as F

from adaptive_lm.export.exporter import run_export
from adaptive_lm.runtime import Dial, Engine, Manifest, load
from adaptive_lm.runtime.calibration.calibrate import CalibrateParams, halves
from adaptive_lm.runtime.calibration.curve_points import mean_losses
from adaptive_lm.runtime.calibration.mechanisms import FEWEST_EXPERTS, mechanisms
from adaptive_lm.runtime.calibration.search import Measured
from adaptive_lm.runtime.dial import Thresholds, resolve
from adaptive_lm.runtime.measuring.quality.divergence import Point, diverge
from adaptive_lm.runtime.measuring.quality.perplexity import score
from adaptive_lm.serve.cli import group
from adaptive_lm.train.config.run_config import make_config
from adaptive_lm.train.data.tokenizers.tokenizers import char_tokenizer
from adaptive_lm.train.model import Transformer
from adaptive_lm.train.run.checkpoints.checkpoint import save_checkpoint

CANDIDATES = 4
FFN = {"num_experts": 8, "most_experts": CANDIDATES, "expert_dim": 16, "controller": "fixed", "router_top_p": 1.0}
STEPS = 120


def trained(folder: Path) -> Path:
    """Train a tiny mixture of the shape of Qwen3-MoE for a few steps, and write its run."""
    folder.mkdir(parents=True)
    run = write_run(folder, steps=(), ffn=FFN, depth={})
    config = make_config(yaml.safe_load((run / "config.yaml").read_text()))
    torch.manual_seed(0)
    model = Transformer(config.model)
    ids = torch.tensor(char_tokenizer(iter([text()])).encode(text(lines=200, seed=2)).ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        begins = torch.randint(len(ids) - 65, (8,))
        rows = torch.stack([ids[begin : begin + 65] for begin in begins])
        loss = F.cross_entropy(model(rows[:, :-1]).logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_checkpoint(run / "checkpoints", STEPS, config, model.state_dict(), {"slot": torch.ones(1)}, {})
    return run


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Export the mixture, calibrate it, and return its folder and the result of the command."""
    run = trained(tmp_path_factory.mktemp("mixture") / "runs" / "mixture")
    folder = run / "model"
    run_export(str(run), folder, targets=(), threads=1)
    command = ["calibrate", "--model", str(folder), "--device", "cpu", "--threads", "1", "--tokens", "1024",
               "--repeats", "1", "--new-tokens", "8", "--json"]  # fmt: skip
    return folder, CliRunner().invoke(group, command)


@pytest.fixture(scope="module")
def engine(calibrated: tuple[Path, Result]) -> Engine:
    return load(calibrated[0], device="cpu", threads=1)


def content(calibrated: tuple[Path, Result]) -> dict[str, Any]:
    assert calibrated[1].exit_code == 0, calibrated[1].output
    parsed: dict[str, Any] = json.loads(calibrated[1].stdout)
    return parsed


def test_each_rule_has_a_curve_and_the_one_that_loses_less_is_the_dial(calibrated: tuple[Path, Result]) -> None:
    rules, curve = content(calibrated)["rules"], content(calibrated)["curve"]
    assert set(rules) == {"mass", "ratio"}
    losses = curve["rule_losses"]
    assert curve["expert_rule"] == min(losses, key=lambda rule: losses[rule])
    chosen = [{**point, "milliseconds_per_token": None} for point in curve["points"]]
    assert rules[curve["expert_rule"]] == chosen
    for rule, points in rules.items():
        for point in points[:-1]:
            levels = point["thresholds"]
            assert (min(levels["router_top_p"]) < 1) == (rule == "mass")
            assert any(levels["router_ratio"]) == (rule == "ratio")


def test_the_last_point_is_the_trained_model_and_the_first_runs_one_expert(calibrated: tuple[Path, Result]) -> None:
    for points in content(calibrated)["rules"].values():
        first, last = points[0], points[-1]
        assert last["thresholds"]["router_top_p"] == [1] * 3
        assert not any(last["thresholds"]["router_ratio"])
        assert last["experts_per_token"] == CANDIDATES
        assert (last["executed_share"], last["kl"], last["agreement"]) == (1, 0, 1)
        assert first["experts_per_token"] == pytest.approx(1, abs=0.05)
        assert first["kl"] > 0
        assert first["agreement"] < 1
        experts = [point["experts_per_token"] for point in points]
        assert experts == sorted(experts)


def test_equal_steps_of_the_dial_are_about_equal_steps_of_compute(calibrated: tuple[Path, Result]) -> None:
    for points in content(calibrated)["rules"].values():
        for point in points[:-1]:
            assert point["executed_share"] == pytest.approx(point["compute"], abs=0.02)


def test_the_figures_of_a_point_are_those_of_the_dial_there(calibrated: tuple[Path, Result], engine: Engine) -> None:
    curve = Manifest.read(calibrated[0]).curve
    assert curve is not None
    _, reporting, _ = halves(engine, calibrated[0], CalibrateParams(tokens=1024))
    full = Point(engine, Thresholds.everything(3))
    for place in (0, 4, -1):
        point = curve.points[place]
        own = Point(engine, resolve(engine.manifest, Dial(compute=point.compute)))
        result = diverge(full, [own], reporting)[0]
        assert result.score.loss == pytest.approx(point.loss, abs=1e-5)
        assert (result.kl, result.agreement) == pytest.approx((point.kl, point.agreement), abs=1e-5)


@pytest.mark.parametrize("rule", ["mass", "ratio"])
def test_thresholds_without_a_table_are_measured(engine: Engine, calibrated: tuple[Path, Result], rule: Any) -> None:
    choosing, _, _ = halves(engine, calibrated[0], CalibrateParams(tokens=1024))

    def cost(point: Thresholds) -> float:
        return score(engine, point, choosing, logits=False).executed_share

    dial = engine.manifest.dial.model_copy(update={"router_top_p": [None] * 3})
    (experts,) = mechanisms(engine.manifest.model_copy(update={"dial": dial}), cost, rule)
    assert experts.field == {"mass": "router_top_p", "ratio": "router_ratio"}[rule]
    assert experts.level(0, 1.0) == {"mass": pytest.approx(FEWEST_EXPERTS), "ratio": 1}[rule]
    shares = []
    for coordinate in (0.0, 0.25, 0.5, 0.75, 1.0):
        point = Thresholds.everything(3)
        experts.apply(point, coordinate)
        shares.append(cost(point))
    np.testing.assert_allclose(np.diff(shares), (shares[-1] - shares[0]) / 4, atol=0.03)


def test_rules_are_compared_over_the_costs_that_both_reach() -> None:
    def path(*steps: tuple[float, float]) -> list[Measured]:
        return [Measured((0.0,), cost, loss) for cost, loss in steps]

    losses = mean_losses({"mass": path((1, 2.0), (0.5, 3.0)), "ratio": path((1, 2.0), (0.6, 2.4), (0.2, 9.0))})
    assert losses["mass"] == pytest.approx(2.5)
    assert losses["ratio"] < 2.6


def test_people_read_which_rule_was_chosen_and_by_how_much(calibrated: tuple[Path, Result], tmp_path: Path) -> None:
    import shutil

    shutil.copy(calibrated[0].parent / "heldout.txt", tmp_path)
    folder = shutil.copytree(calibrated[0], tmp_path / "model")
    command = ["calibrate", "--model", str(folder), "--device", "cpu", "--threads", "1", "--tokens", "512",
               "--repeats", "0"]  # fmt: skip
    result = CliRunner().invoke(group, command)
    assert result.exit_code == 0, result.output
    assert "mean loss over the same FLOPs, where experts are left out by their share of the mass " in result.stdout
    assert "the lower one is the dial" in result.stdout
    assert result.stdout.splitlines()[0].split()[:6] == ["compute", "executed", "loss", "bits/byte", "KL", "agreement"]
