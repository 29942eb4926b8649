"""Questions from a person: a line editor on a terminal, plain lines elsewhere; three quotes around several lines."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

QUOTES = '"""'
PROMPT, MORE = "> ", "… "


class LineReader(Protocol):
    """Reads one line."""

    def read(self, prompt: str) -> str:
        """Return the next line without its end.

        Raises:
            EOFError: There is none.
            KeyboardInterrupt: The line was given up.
        """


class PlainReader:
    """Lines of stdin, without a prompt."""

    def read(self, prompt: str) -> str:  # shown on a terminal only
        """Return the next line."""
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n").removesuffix("\r")


class InputReader:
    """Lines of a terminal, by Python's own `input`."""

    def read(self, prompt: str) -> str:
        """Return the next line."""
        return input(prompt)


class Editor:
    """Lines of a terminal by prompt_toolkit: a history of this conversation, commands completed, pasted lines whole.

    Args:
        words: What Tab completes at the beginning of a line.
        status: Returns what the line below shows.
    """

    def __init__(self, words: Sequence[str], status: Callable[[], str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

        keys = KeyBindings()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        self.completer = WordCompleter(list(words), sentence=True)
        self._session: PromptSession[str] = PromptSession(
            completer=self.completer, complete_while_typing=False, key_bindings=keys, bottom_toolbar=status
        )

    def read(self, prompt: str) -> str:
        """Return the next line, or several that were pasted or joined by Alt-Enter."""
        return self._session.prompt(prompt)


def open_reader(words: Sequence[str], status: Callable[[], str]) -> LineReader:
    """Return the best reader for what stdin is."""
    if not sys.stdin.isatty():
        return PlainReader()
    try:
        return Editor(words, status)
    except ImportError:
        return InputReader()


def questions(reader: LineReader) -> Iterator[str]:
    """Yield what a person asks, until the input ends. Ctrl-C gives a line up, a second one right after it ends."""
    given_up = False
    while True:
        try:
            yield _question(reader)
            given_up = False
        except EOFError:
            return
        except KeyboardInterrupt:
            if given_up:
                return
            given_up = True


def _question(reader: LineReader) -> str:
    """Read one line, or the lines between two marks.

    Raises:
        EOFError: Nothing is left; several lines that were begun count as asked.
    """
    line = reader.read(PROMPT)
    if not line.lstrip().startswith(QUOTES):
        return line
    text = line.lstrip().removeprefix(QUOTES)
    while QUOTES not in text:
        try:
            text += "\n" + reader.read(MORE)
        except EOFError:
            break
    return text.partition(QUOTES)[0].strip("\n")
