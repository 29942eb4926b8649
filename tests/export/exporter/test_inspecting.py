"""`adaptive inspect` of a run: which checkpoint it reads, that its figures are the model's, and saturation."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from support.runs import write_run

from adaptive_lm.export.exporter import run_export
from adaptive_lm.export.source import read
from adaptive_lm.serve.cli import group
from adaptive_lm.train.run.checkpoints.best import Score, point_at


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the run `runs/demo` in a folder: steps 5, 10 (the best) and 20, and snapshots of its routing."""
    place = tmp_path_factory.mktemp("inspected")
    run = write_run(place / "runs" / "demo", steps=(5, 10, 20))
    point_at(run, Score(10, 1.5, 64))
    (run / "routing").mkdir()
    random = np.random.default_rng(0)
    last = random.permuted(np.tile(np.arange(4), (3, 40, 1)), axis=2)
    for step in (0, 5, 10, 20):
        ranked = last if step >= 10 else random.permuted(last, axis=2)
        arrays = {"experts.layers": np.arange(3), "experts.ranked": ranked.astype(np.uint8),
                  "experts.used": np.full((3, 40), 2, np.uint16)}  # fmt: skip
        np.savez_compressed(run / "routing" / f"step-{step:06d}.npz", **arrays)
    return place


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def run(*args: str) -> Result:
    return CliRunner().invoke(group, ["inspect", "--device", "cpu", "--threads", "1", "--tokens", "600", *args])


def content(*args: str) -> dict[str, Any]:
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize(
    ("args", "step"),
    [(("demo",), 20), (("demo", "--checkpoint", "last"), 20), (("demo", "--checkpoint", "best"), 10),
     (("runs/demo", "--checkpoint", "5"), 5), (("runs/demo/checkpoints/step-000010",), 10)],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)  # fmt: skip
def test_which_checkpoint_is_read(inside: Path, args: tuple[str, ...], step: int) -> None:
    found = content(*args)
    assert found["model"].endswith(f"demo at step {step}")
    assert found["text"] == "heldout.txt"
    assert found["teacher"] is None
    assert found["saturation"]["experts"]["steps"] == [one for one in (0, 5, 10, 20) if one <= step]


def test_the_figures_are_those_of_the_torch_model(inside: Path) -> None:
    """A text of one context, so that one pass of the model is all of it."""
    source = read(Path("runs/demo/checkpoints/step-000010"))
    ids = source.heldout_ids(source.config.context_length)
    with torch.no_grad():
        out = source.model(ids, source.thresholds())
    found = content("demo", "--checkpoint", "10", "--tokens", str(ids.shape[1]))
    for layer, choice in zip(out.routing, found["experts"]["choices"], strict=True):
        assert layer.routes is not None
        used = (layer.routes.selected_experts & layer.runs[:, None])[layer.runs].float().mean(0)
        assert choice["share"] == pytest.approx(used.tolist(), abs=1e-6)
        assert choice["tokens"] == int(layer.runs.sum())


def test_an_exported_model_says_the_same_and_is_taken_while_it_is_of_the_newest_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "demo", steps=(5, 10))
    before = content("demo")
    run_export("runs/demo", threads=1)
    after = content("demo")
    assert after["model"] == str(Path("runs/demo/model"))
    weights = [one["memory"].pop("weight_bytes") for one in (before, after)]  # those of the graph that was read
    assert min(weights) > 0
    assert {name: before[name] for name in before if name != "model"} == {n: after[n] for n in after if n != "model"}
    assert content("demo", "--checkpoint", "5")["model"].endswith("at step 5")
    write_run(tmp_path / "runs" / "demo", steps=(15,))
    assert content("demo")["model"].endswith("at step 15"), "the export is of an older one"
    assert content("runs/demo/model")["model"] == str(Path("runs/demo/model"))


def test_the_teacher_of_a_run_stands_in_a_line_and_in_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    teacher = {"model": "elder", "checkpoint": "40", "sha256": "0123456789abcdef" * 4}
    write_run(tmp_path / "runs" / "pupil", distillation={"teacher": teacher})
    assert "teacher: elder at 40 (0123456789ab)" in run("pupil").stdout.splitlines()
    assert content("pupil")["teacher"] == "elder at 40 (0123456789ab)"


@pytest.mark.slow
def test_saturation_stands_in_table_page_and_picture(inside: Path, tmp_path: Path) -> None:
    page, picture = tmp_path / "page.html", tmp_path / "picture.png"
    result = run("demo", "--html", str(page), "--plot", str(picture))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("experts: saturation"))
    assert lines[at + 1].split() == ["layer", "by", "chance", "step", "0", "step", "5", "step", "10", "step", "20"]
    assert lines[at + 2].split()[-2:] == ["1.00", "1.00"]
    assert 0.3 < float(lines[at + 2].split()[-4]) < 0.7, "two of four, at random"
    assert "layer 2, step 10: 100.0%" in page.read_text()
    assert picture.stat().st_size > 10_000
    plain = tmp_path / "plain.png"
    assert run("demo", "--checkpoint", "5", "--plot", str(plain)).exit_code == 0


def test_nothing_is_left_behind(inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = sorted(Path("runs/demo").rglob("*"))
    content("demo")
    assert list(tmp_path.iterdir()) == []
    assert sorted(Path("runs/demo").rglob("*")) == before


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("nobody",), 1, "there is no run or checkpoint nobody"),
        (("demo", "--checkpoint", "7"), 1, "steps 5, 10, 20"),
        (("demo", "--checkpoint", "newest"), 1, "expected best, last"),
        (("--checkpoint", "best"), 2, "--checkpoint needs the name of a run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_is_not_there_is_said_in_one_line(inside: Path, args: tuple[str, ...], code: int, message: str) -> None:
    result = run(*args)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
