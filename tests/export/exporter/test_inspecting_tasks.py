"""`adaptive inspect` of a run with several tasks: which experts serve which task."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from support.runs import text, write_run

from adaptive_lm.export.exporter import run_export
from adaptive_lm.export.source import read
from adaptive_lm.serve.cli import group


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a run of two tasks, whose texts differ."""
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "runs" / "demo")
    tasks = [
        {"name": "rivers", "token": None, "heldout": text(30, seed=3)},
        {"name": "stones", "token": "s", "heldout": "stone " * 100 + text(20, seed=4)},
    ]
    (run / "tasks.json").write_text(json.dumps({"format_version": 1, "tasks": tasks}))
    return run


def inspect(*args: str) -> Result:
    return CliRunner().invoke(group, ["inspect", "--device", "cpu", "--threads", "1", "demo", *args])


def content(*args: str) -> dict[str, Any]:
    result = inspect("--json", *args)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_shares_of_a_task_are_those_of_the_torch_model_on_its_text(demo: Path) -> None:
    """One context of each text; that of the task with a token begins with it."""
    figures = content("--tokens", "400")
    assert [(one["label"], one["tokens"]) for one in figures["groups"]["tasks"]] == [("rivers", 200), ("stones", 200)]
    source = read(demo / "checkpoints" / "step-000010")
    tasks = json.loads((demo / "tasks.json").read_text())["tasks"]
    for place, task in enumerate(tasks):
        lead = [] if task["token"] is None else [source.tokenizer.token_to_id(task["token"])]
        ids = source.tokenizer.encode(task["heldout"]).ids[:200]
        with torch.no_grad():
            out = source.model(torch.tensor([lead + ids]), source.thresholds())
        for layer, choice in zip(out.routing, figures["experts"]["choices"], strict=True):
            assert layer.routes is not None
            used = (layer.routes.selected_experts & layer.runs[:, None])[len(lead) :][layer.runs[len(lead) :]]
            shown = choice["by"]["tasks"]["groups"][place]
            assert shown["label"] == task["name"]
            assert shown["share"] == pytest.approx(used.float().mean(0).tolist(), abs=1e-6)
        run = torch.stack([layer.runs[len(lead) :] for layer in out.routing]).float().mean(1)
        layers = figures["layers"]["choices"][0]["by"]["tasks"]["groups"][place]["share"]
        assert layers == pytest.approx(run.tolist(), abs=1e-6)


def test_the_tables_have_a_heat_map_of_experts_and_layers_over_tasks(demo: Path, tmp_path: Path) -> None:
    result = inspect("--tokens", "400", "--html", "page.html")
    assert result.exit_code == 0, result.output
    assert "experts: share of each task's tokens that use each" in result.stdout
    assert "layers: share of each task's tokens that use each" in result.stdout
    assert "tasks: average use of a token of each" in result.stdout
    assert "by task" in result.stdout
    page = (tmp_path / "page.html").read_text()
    assert "stones, expert 0 of layer 0" in page


def test_an_exported_model_beside_the_run_shows_the_same_and_a_given_text_has_no_tasks(demo: Path) -> None:
    before = content("--tokens", "300")
    run_export("runs/demo", threads=1)
    after = content("--tokens", "300", "--target", "portable")
    for one, other in zip(before["experts"]["choices"], after["experts"]["choices"], strict=True):
        shares = [np.array([row["share"] for row in each["by"]["tasks"]["groups"]]) for each in (one, other)]
        np.testing.assert_array_equal(*shares)
    Path("own.txt").write_text(text(20))
    assert "tasks" not in content("--data", "own.txt")["groups"]


@pytest.mark.parametrize("broken", ["{", "[]", '{"tasks": [{"name": "a"}]}'])
def test_a_damaged_file_of_tasks_is_one_message(demo: Path, broken: str) -> None:
    (demo / "tasks.json").write_text(broken)
    result = inspect()
    assert result.exit_code == 1
    assert "tasks.json cannot be read" in result.stderr
    assert "give a text with: --data FILE" in result.stderr
    Path("own.txt").write_text(text(20))
    assert inspect("--data", "own.txt").exit_code == 0
