"""`adaptive chat` as a program: what goes where, and its exit codes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.graphs.rich_graph import CURVE
from support.graphs.tiny_graph import write_manifest, write_model

from adaptive_lm.serve.cli import group

TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}a:"


@pytest.fixture
def talk(tmp_path: Path) -> Callable[..., Result]:
    folder = tmp_path / "demo" / "model"
    write_model(folder)
    write_manifest(folder, chat_template=TEMPLATE, curve=CURVE)

    def run(lines: str, *options: str) -> Result:
        command = ["chat", "--model", str(folder), "--device", "cpu", "--threads", "1", "--temperature", "0"]
        return CliRunner().invoke(group, [*command, "--max-new-tokens", "4", *options], input=lines)

    return run


def test_answers_go_to_stdout_and_all_else_to_stderr(talk: Callable[..., Result], tmp_path: Path) -> None:
    place = tmp_path / "a.json"
    result = talk(f"hello\n/compute 0.5\nagain\n/save {place}\n")
    assert result.exit_code == 0, result.stderr
    answers = [
        turn["content"] for turn in json.loads(place.read_text("utf-8"))["messages"] if turn["role"] == "assistant"
    ]
    assert len(answers) == 2
    assert [line.strip() for line in result.stdout.splitlines() if line.strip()] == [
        line.strip() for answer in answers for line in answer.splitlines() if line.strip()
    ]
    assert "of dense FLOPs" in result.stderr
    assert "compute 0.5" in result.stderr
    assert f"saved {place}" in result.stderr


def test_a_saved_conversation_goes_on(talk: Callable[..., Result], tmp_path: Path) -> None:
    place = tmp_path / "a.json"
    talk(f"hello\n/save {place}\n", "--system", "be kind")
    result = talk(f"more\n/save {place}\n", "--load", str(place), "--usage", "none")
    content = json.loads(place.read_text("utf-8"))
    assert content["system"] == "be kind"
    assert [turn["role"] for turn in content["messages"]] == ["user", "assistant"] * 2
    assert "FLOPs" not in result.stderr


def test_a_mistake_is_named_the_rest_is_answered_and_the_exit_code_tells(talk: Callable[..., Result]) -> None:
    result = talk("/nothing\nhello\n")
    assert result.exit_code == 1
    assert "error: found the command /nothing" in result.stderr
    assert "4 tokens" in result.stderr


@pytest.mark.parametrize("command", ["/exit", "/quit"])
def test_nothing_is_answered_after_the_end(talk: Callable[..., Result], command: str) -> None:
    result = talk(f"{command}\nhello\n")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "tokens" not in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--temperature", "-1"), "found --temperature -1"), (("--load", "nowhere.json"), "cannot read nowhere.json"),
     (("--compute", "3"), "found --compute 3")],
)  # fmt: skip
def test_a_wrong_option_is_refused_before_anything_is_read(
    talk: Callable[..., Result], options: tuple[str, ...], message: str
) -> None:
    result = talk("hello\n", *options)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert result.stdout == ""


def test_control_characters_of_an_answer_do_not_reach_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    from adaptive_lm.runtime.conversation.screen import Terminal

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    Terminal(None).answer("a\x1b[31mb\n")  # type: ignore[arg-type]  # no cost is shown
    assert "\x1b" not in capsys.readouterr().out
