"""Typed special tokens stay text: their spellings in a conversation are replaced by marks while a template runs.

Source of the idea: `sanitize_control_tokens` of transformers 5.24.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...contract.errors import UserError

MARKS = range(0xE000, 0xF900)
"""Private-use characters; one that the conversation does not hold begins and ends each mark."""


class Escape:
    """Replaces the spellings of control tokens by marks, and reads the marks that a template wrote.

    Control tokens are the special tokens, and those added tokens that the template spells out: `<tool_call>` in Qwen's.
    In what the assistant wrote only the special ones are replaced, since it writes the others itself.

    Args:
        added: Added tokens of the tokenizer, and whether each is special.
        template: The text of the template.
        conversation: All values that the template sees, as JSON.
    """

    def __init__(self, added: Mapping[str, bool], template: str, conversation: str) -> None:
        self._numbers = {token: n for n, token in enumerate(added) if added[token] or token in template}
        self._all = _pattern(self._numbers)
        self._special = _pattern([token for token in self._numbers if added[token]])
        held = set(conversation) | set(template)
        mark = next((chr(code) for code in MARKS if chr(code) not in held), None)
        if mark is None:
            raise UserError(
                "found every private-use character in a conversation, expected one at least free; remove it"
            )
        self._mark = mark
        self._used: dict[str, str] = {}

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the messages with marks."""
        return [
            self._walk(dict(message), self._special if message.get("role") == "assistant" else self._all)
            for message in messages
        ]

    def value(self, value: Any) -> Any:
        """Return tools, documents or variables with marks."""
        return self._walk(value, self._all)

    def rendered(self, text: str) -> tuple[str, dict[str, str]]:
        """Return the text that the template wrote, and what each mark in it stands for."""
        if self._used:  # a template may have written them as JSON in ASCII
            text = text.replace(f"\\u{ord(self._mark):04x}", self._mark)
        return text, {mark: token for mark, token in self._used.items() if mark in text}

    def _walk(self, value: Any, pattern: re.Pattern[str] | None) -> Any:
        if pattern is None:
            return value
        if isinstance(value, str):
            return pattern.sub(self._replace, value)
        if isinstance(value, dict):
            return {key: self._walk(one, pattern) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self._walk(one, pattern) for one in value]
        return value

    def _replace(self, match: re.Match[str]) -> str:
        token = match[0]
        mark = f"{self._mark}{self._numbers[token]}{self._mark}"
        self._used[mark] = token
        return mark


def _pattern(tokens: Any) -> re.Pattern[str] | None:
    """Return a pattern of tokens, the longest first; None for none."""
    spelled = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, spelled))) if spelled else None
