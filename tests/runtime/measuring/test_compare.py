"""`adaptive bench --compare`: models and targets measured in alternating rounds, and the ratios of their times."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from adaptive_lm.runtime import Engine
from adaptive_lm.runtime.format.files import digest
from adaptive_lm.runtime.measuring.compare import ratios_json
from adaptive_lm.runtime.measuring.nodes import count, nodes_per_token
from adaptive_lm.runtime.measuring.timing import Timed
from adaptive_lm.serve.cli import group

SHORT = ["--device", "cpu", "--threads", "1", "--prompt-tokens", "10", "--new-tokens", "12", "--repeats", "3"]
STORY = "Mountains form where plates meet; the crust folds, and rivers carve it. " * 20


@pytest.fixture
def runs(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs `first` and `second` of one model; commands run beside them."""
    for name in ("first", "second"):
        shutil.copytree(model, tmp_path / "runs" / name / "model")
        (tmp_path / "runs" / name / "heldout.txt").write_text(STORY)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def compare(*args: str) -> Result:
    return CliRunner().invoke(group, ["bench", *SHORT, *args])


def test_the_ratios_of_each_model_are_to_the_first(runs: Path) -> None:
    result = compare("--compare", "first", "second:portable", str(runs / "first"), "--json")
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    first, second, _ = content["models"]
    assert [one["name"] for one in content["models"]] == ["first", "second:portable", str(runs / "first")]
    for one in content["models"]:
        assert (one["target"], one["kernel"], one["precision"]) == ("portable", None, "fp32")
        assert one["nodes_per_token"] == first["nodes_per_token"] > 0
        for phase in ("prefill", "decode"):
            for clock in ("milliseconds", "cpu_milliseconds"):
                assert 0 < one[phase][clock]["p5"] <= one[phase][clock]["median"] <= one[phase][clock]["p95"]
    assert first["ratio"]["decode"] == first["ratio"]["prefill_cpu"] == {"median": 1.0, "p5": 1.0, "p95": 1.0}
    for phase in ("prefill", "prefill_cpu", "decode", "decode_cpu"):
        assert second["ratio"][phase]["median"] > 0
    assert content["settings"]["tokens_from"] == "text"


def test_ratios_are_paired_by_round() -> None:
    """A machine that becomes slow slows both, and their ratio stays."""
    slowness = np.array([1.0, 1.1, 5.0, 9.0])
    one, other = (
        Timed(
            prefill=list(s * slowness),
            rounds=[[s * slow] * 3 for slow in slowness],
            prefill_cpu=list(s * slowness),
            rounds_cpu=[[s] * 3 for _ in slowness],
        )
        for s in (0.002, 0.003)
    )
    for ratio in ratios_json(other, one).values():
        assert ratio == {"median": 1.5, "p5": 1.5, "p95": 1.5}


def test_people_read_a_table_of_decoding_and_one_of_prompts(runs: Path) -> None:
    result = compare("--compare", "first", "second")
    assert result.exit_code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines() if line]
    assert [line[0] for line in lines] == [
        "machine",
        "tokens",
        "decode",
        "first",
        "second",
        "prefill",
        "first",
        "second",
    ]
    assert lines[3][1:4] == ["fp32,", "target", "portable"]
    assert "1.00" in lines[3]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--compare", "first"], 2, "adaptive bench --compare first:cpu first:portable"),
        (["--compare", "first:cpu"], 2, "adaptive bench --compare first:cpu first:portable"),
        (["first", "second"], 2, "type: adaptive bench --model first"),
        (["--compare"], 2, "found 0 models to compare"),
        (["--compare", "first", "third"], 1, "exported runs here: first, second"),
        (["--compare", "first", "second:gpu"], 2, "type: second:portable"),
        (["--compare", "first", "third:gpu"], 1, "no exported model at third"),
        (["--compare", "first", "second", "--model", "first"], 2, "leave --model out"),
        (["--compare", "first", "second", "--sweep"], 2, "leave --sweep out"),
        (["--compare", "first", "second", "--new-tokens", "100"], 1, "this model's context is 96"),
        (["--compare", "first", "second:cpu"], 1, "no graph for the target cpu"),
        (["--compare", "first", "second", "--target", "cpu"], 1, "no graph for the target cpu"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_comparison_says_what_to_type(runs: Path, args: list[str], code: int, message: str) -> None:
    result = compare(*args)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert result.stdout == ""


@pytest.fixture
def other_tokenizer(runs: Path) -> None:
    """Give the second model a tokenizer that differs in its bytes."""
    model = runs / "second" / "model"
    path, manifest = model / "tokenizer.json", model / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["files"]["tokenizer.json"] = {"bytes": path.stat().st_size, "sha256": digest(path)}
    manifest.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.usefixtures("other_tokenizer")
def test_models_with_different_tokenizers_read_random_ids() -> None:
    result = compare("--compare", "first", "second", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["settings"]["tokens_from"] == "random ids, since tokenizers differ"
    refused = compare("--compare", "first", "second", "--text", "runs/first/heldout.txt")
    assert refused.exit_code == 1
    assert "leave --text out" in refused.stderr


def test_the_nodes_of_a_token_are_those_of_the_profile(engine: Engine, model: Path) -> None:
    events: list[dict[str, Any]] = [
        {"cat": "Session", "name": "model_run"},
        {"cat": "Node", "name": "MatMul_fence_before"},
        {"cat": "Node", "name": "MatMul_kernel_time"},
        {"cat": "Node", "name": "If_kernel_time"},
    ]
    assert count(events) == 2
    nodes = nodes_per_token(engine, model)
    assert nodes == nodes_per_token(engine, model) > 10


@pytest.mark.parametrize("command", ["generate", "bench", "calibrate", "inspect"])
def test_every_command_takes_a_target(command: str, runs: Path) -> None:
    prompt = ["hello"] if command == "generate" else []
    result = CliRunner().invoke(group, [command, *prompt, "--model", "first", "--target", "cpu"])
    assert result.exit_code == 1, result.output
    assert "no graph for the target cpu" in result.stderr
