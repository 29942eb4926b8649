"""The text of a generation as it can be shown: whole characters, up to a stop string."""

import copy
from typing import Self

from .stop import StopWatch
from .tokenizer import Tokenizer


class VisibleText:
    """The text of a generation, held back where a character or a stop string is not complete."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: list[int], stop: tuple[str, ...], show: bool | tuple[int, ...] = False
    ) -> None:
        self._ends = tokenizer.ends
        self._stream = tokenizer.stream(prompt, show)
        self._watch = StopWatch(stop)

    def add(self, token: int, *, end: str | None) -> tuple[str, str | None]:
        """Return the text that can be shown after `token`, and the reason why it ends there: None if it continues.

        Args:
            token: The next token.
            end: Why nothing may follow it, whatever its text; None if something may.
        """
        reason = "eos" if token in self._ends else end
        text = "" if reason == "eos" else self._stream.push(token)
        if reason is None:
            text = self._watch.push(text)
        else:
            text = self._watch.push(text + self._stream.flush()) + self._watch.flush()
        return text, "stop" if self._watch.stopped else reason

    def fork(self) -> Self:
        """Return a text that goes on from here by itself."""
        other = copy.copy(self)
        other._stream = self._stream.fork()
        other._watch = copy.copy(self._watch)  # it holds nothing that changes in place
        return other
