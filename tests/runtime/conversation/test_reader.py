"""Questions from a person: lines, several lines between quotes, interruptions, and the line editor."""

import io
import sys
from collections.abc import Iterable

import pytest
from support.cases import each

from adaptive_lm.runtime.conversation.reader import Editor, PlainReader, questions

CTRL_C = object()


class Script:
    """Gives lines, or interruptions."""

    def __init__(self, lines: Iterable[object]) -> None:
        self.lines = iter(lines)

    def read(self, prompt: str) -> str:
        line = next(self.lines, None)
        if line is None:
            raise EOFError
        if line is CTRL_C:
            raise KeyboardInterrupt
        return str(line)


@each(
    ("lines", "asked"),
    [
        (["a", "b"], ["a", "b"]),
        (['"""', "a", "b", '"""'], ["a\nb"]),
        (['"""a', 'b"""', "c"], ["a\nb", "c"]),
        (['"""a"""', "b"], ["a", "b"]),
        (['"""', "a"], ["a"]),
        ([CTRL_C, "a"], ["a"]),
        (["a", CTRL_C, CTRL_C, "b"], ["a"]),
        ([CTRL_C, "a", CTRL_C, "b"], ["a", "b"]),
        (['"""', "a", CTRL_C, "b"], ["b"]),
        ([], []),
    ],
)
def test_what_is_asked(lines: list[object], asked: list[str]) -> None:
    assert list(questions(Script(lines))) == asked


def test_lines_of_a_pipe_keep_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(" a \r\n\nlast"))
    assert list(questions(PlainReader())) == [" a ", "", "last"]


def test_the_editor_takes_lines_several_lines_and_completes_commands() -> None:
    pytest.importorskip("prompt_toolkit")
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        editor = Editor(["/compute", "/help"], lambda: "status")
        keys.send_text("hello\rone\x1b\rtwo\r\x04")
        assert list(questions(editor)) == ["hello", "one\ntwo"]
        completed = editor.completer.get_completions(Document("/comp"), CompleteEvent())
        assert [one.text for one in completed] == ["/compute"]
        assert not list(editor.completer.get_completions(Document("why /comp"), CompleteEvent()))
