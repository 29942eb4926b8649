"""The group of commands: what a person reads, on which stream, and with which exit code."""

import os
import subprocess
import sys
import types
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from adaptive_lm.contract.errors import UserError
from adaptive_lm.serve.cli import COMMANDS, LazyGroup


class DiskFullError(UserError):
    exit_code = 7


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, error: BaseException | None = None) -> Result:
    """Call a group whose table holds one command, `work`, which prints `done` or raises `error`."""

    @click.command()
    @click.option("--times", type=int)
    def work(times: int | None) -> None:
        """Do some work."""
        if error is not None:
            raise error
        click.echo("done")

    module = types.ModuleType("a_room_of_the_test")
    module.work = work  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    group = LazyGroup("adaptive", table={"work": "a_room_of_the_test:work", "absent": "no_such_room:absent"})
    return CliRunner().invoke(group, arguments)


def test_a_command_runs_from_its_string(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, "work")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "done\n", "")


def test_another_command_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "work").exit_code == 0
    assert isinstance(run(monkeypatch, "absent").exception, ModuleNotFoundError)


def test_a_persons_mistake_is_one_line_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, "work", error=UserError("found 2, expected 1; type: x"))
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "error: found 2, expected 1; type: x\n")


def test_an_error_brings_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, "work", error=DiskFullError("no space left"))
    assert (result.exit_code, result.stderr) == (7, "error: no space left\n")


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), ModuleNotFoundError("No module named 'json2'", name="json2"), KeyError("for_people")]
)
def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    assert run(monkeypatch, "work", error=error).exception is error


@pytest.mark.parametrize(
    ("library", "extra"),
    [
        ("torch", "train"),
        ("onnx.helper", "train"),
        ("safetensors.torch", "train"),
        ("yaml", "train"),
        ("datasets", "hf"),
    ],
)
def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch, library: str, extra: str) -> None:
    result = run(monkeypatch, "work", error=ModuleNotFoundError(f"No module named {library!r}", name=library))
    assert result.exit_code == 1
    name = library.partition(".")[0]
    advice = f'type: pip install "adaptive-lm[{extra}]"'
    assert result.stderr == f"error: {name} is not installed, this command needs it; {advice}\n"


def test_a_mistyped_command_suggests_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, "wrok")
    assert result.exit_code == 2
    assert "no command 'wrok'" in result.stderr
    assert "did you mean: adaptive work" in result.stderr


def test_a_command_like_no_other_points_to_the_help(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, "zzzzzz")
    assert result.exit_code == 2
    assert "see: adaptive --help" in result.stderr


@pytest.mark.parametrize("arguments", [("work", "--tmies", "3"), ("work", "--times", "three"), ("--vresion",)])
def test_wrong_usage_exits_with_two(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    result = run(monkeypatch, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")


def test_an_interrupt_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, "work", error=KeyboardInterrupt())
    assert (result.exit_code, result.output.strip()) == (130, "")


def adaptive(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "adaptive_lm.serve", *arguments], text=True, **options)  # type: ignore[call-overload, no-any-return]


def test_the_version_is_the_installed_one() -> None:
    from importlib.metadata import version

    done = adaptive("--version", capture_output=True)
    assert done.stdout == f"adaptive {version('adaptive-lm')}\n"


def test_the_help_lists_every_command_with_a_short_help() -> None:
    text = adaptive("--help", capture_output=True).stdout
    listed = [line.split(maxsplit=1) for line in text.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()]
    assert [words[0] for words in listed] == list(COMMANDS)
    assert all(len(words) == 2 for words in listed)


PRINTER = """
import sys, types, click
from adaptive_lm.serve.cli import LazyGroup
sys.modules["room"] = types.SimpleNamespace(work=click.Command("work", callback=lambda: print("a result")))
LazyGroup(table={"work": "room:work"})(["work"])
"""


def test_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
        done = subprocess.run(
            [sys.executable, "-c", PRINTER], stdout=writer, stderr=subprocess.PIPE, text=True, env=buffered
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_training_without_torch_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from adaptive_lm.serve.cli import group; group(['train'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert 'type: pip install "adaptive-lm[train]"' in done.stderr
    assert "Traceback" not in done.stderr
