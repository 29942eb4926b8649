"""The benchmark `serve` and the soak: what they send is answered, and what goes wrong is seen."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from support.graphs.tiny_graph import write_manifest, write_model


@pytest.fixture
def soak() -> ModuleType:
    return import_module("serve_soak")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path)
    write_manifest(tmp_path)
    return tmp_path


def test_a_short_soak_answers_everything_and_says_so(soak: ModuleType, model: Path) -> None:
    result = CliRunner().invoke(soak.main, ["--model", str(model), "--requests", "30"])
    assert result.exit_code in (0, 1), result.output
    problems = [line for line in result.stderr.splitlines() if line.startswith("problem:")]
    # Within 30 requests the memory of a new process still grows.
    assert [line for line in problems if "memory grew" not in line] == []
    assert result.stdout.startswith("30 requests in ")


@pytest.mark.parametrize(
    ("status", "finish", "problem"),
    [
        (200, "length", None),
        (200, None, "ended with None"),
        (200, "stop", "ended with 'stop'"),
        (500, None, "status 500"),
    ],
)
def test_a_lost_answer_is_a_problem(
    soak: ModuleType, model: Path, status: int, finish: str | None, problem: str | None
) -> None:
    one = soak.Soak(None, soak.Manifest.read(model, verify=False), seed=0)
    answer = soak.Answer(0.0, status=status, times=[1.0], finish=finish)
    one.check(soak.Case({"prompt": "a"}, None), answer)
    assert len(one.problems) == (problem is not None)
    assert problem is None or one.problems[0].startswith(problem)
