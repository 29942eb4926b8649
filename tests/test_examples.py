"""The programs in examples/ run as their first lines say."""

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support.runs import text, write_run

from adaptive_lm.contract.file_names import CHAT_TEMPLATE
from adaptive_lm.export.exporter import run_export
from adaptive_lm.train.data.sources.chat import ChatTemplate

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a script of examples/ in a folder of its own, as `python` would, and return what it printed on stdout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADAPTIVE_CACHE", str(tmp_path / "cache"))

    def program(name: str, *arguments: str) -> str:
        script = str(ROOT / "examples" / name)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        capsys.readouterr()
        runpy.run_path(script, run_name="__main__")
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return printed.out

    return program


def own_text(folder: Path) -> str:
    (folder / "my-text.txt").write_text(text(400, seed=3), encoding="utf-8")
    return "my-text.txt"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_begins_with_a_command_that_runs_it(path: Path) -> None:
    first = path.read_text(encoding="utf-8").split('"""')[1]
    assert re.search(rf"^python examples/{path.name} ", first, re.MULTILINE)


def test_tokens_are_streamed_with_their_usage(tmp_path: Path, run: Callable[..., str]) -> None:
    write_run(tmp_path / "run", tokenizer="bytes")
    (tmp_path / "run" / CHAT_TEMPLATE).write_text(ChatTemplate().text, encoding="utf-8")
    model = run_export(str(tmp_path / "run")).folder
    lines = run("stream_tokens.py", str(model), "the sun").splitlines()
    assert lines
    assert all(re.search(r" \|.* \d+% +[\d.]+ ms$", line) for line in lines)


@pytest.mark.slow
def test_a_run_is_trained_from_python(tmp_path: Path, run: Callable[..., str]) -> None:
    printed = run("train_from_python.py", own_text(tmp_path), "--steps", "10")
    assert re.search(r"held-out loss \d\.\d+, [1-4]\.\d\d of 4 experts per token", printed)


@pytest.mark.slow
def test_one_expert_costs_less_than_all_that_the_router_wants(tmp_path: Path, run: Callable[..., str]) -> None:
    printed = run("your_own_text.py", own_text(tmp_path), "--steps", "20", "--prompt", "the sun ")
    trained, least = (int(share) for share in re.findall(r"^ *(\d+)% of the FLOPs", printed, re.MULTILINE))
    assert least < trained


def test_the_manifests_of_kubernetes_are_yaml() -> None:
    documents = list(yaml.safe_load_all((ROOT / "examples" / "kubernetes.yaml").read_text(encoding="utf-8")))
    assert all(document["kind"] for document in documents)
