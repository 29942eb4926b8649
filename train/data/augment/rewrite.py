"""Rewriting of documents before they are tokenised: synonyms, and other ways to ask a question."""

import re
from collections.abc import Callable, Sequence

from ....contract.errors import UserError
from ....contract.files import user_path
from ....contract.messages import Message
from ..windows.order import mix
from .codelike import looks_like_code, named_as_code, paragraphs
from .config import BUILTIN, AugmentConfig
from .synonyms import Synonyms, read_setting, read_values

SLOT = "{question}"
BUILTIN_TEMPLATES = (
    SLOT,
    f"Can you tell me: {SLOT}",
    f"Question: {SLOT}",
    f"Please answer: {SLOT}",
    f"I would like to know: {SLOT}",
    f"{SLOT} Please explain.",
    f"Tell me, {SLOT}",
    f"Here is a question: {SLOT}",
)
# Records that are one string: a question and its answer after these words, as in "User: ... Assistant: ...".
_ASKED = re.compile(r"\A(\s*(?:User|Human|Question|Q):\s*)(.+?)(\s+(?:Assistant|Bot|Answer|A):\s.*)\Z", re.DOTALL)


class Rewriter:
    """Writes variant `variant` (1, 2, ...) of the documents of a source; the same seed writes the same."""

    def __init__(
        self,
        config: AugmentConfig,
        synonyms: Synonyms | None,
        templates: Sequence[str],
        is_known: Callable[[str], bool],
        key: int,
        variant: int,
    ) -> None:
        self.config, self._synonyms, self._templates, self._is_known = config, synonyms, templates, is_known
        self._key = mix(key, variant)
        self.identity: list[object] = [
            self._key,
            config.model_dump(mode="json", exclude={"word_dropout", "unknown_word", "span_shuffle", "span_words"}),
            synonyms.digest if synonyms else None,
            list(templates),
        ]
        """All that a rewritten text depends on besides the text."""

    def leaves(self, name: str) -> bool:
        """Return whether the name of a file is that of code, which is left unchanged."""
        return self.config.leave_code and named_as_code(name)

    def text(self, text: str, number: int) -> str:
        """Replace words in piece `number` of plain text, paragraph by paragraph, where it is not code."""
        if self._synonyms is None or (self.config.leave_code and looks_like_code(text)):
            return text
        pieces = paragraphs(text) if self.config.leave_code else [(text, False)]
        return "".join(
            piece if code else self._replaced(piece, mix(self._key, number, place, 1))
            for place, (piece, code) in enumerate(pieces)
        )

    def record(self, text: str, number: int) -> str:
        """Rewrite record `number`, which is one string; of a question and its answer only the question is changed."""
        asked = _ASKED.match(text)
        if asked is None:
            return self.text(text, number)
        return asked[1] + self.question(asked[2], number) + asked[3]

    def messages(self, messages: Sequence[Message], number: int) -> list[Message]:
        """Rewrite the questions of the user in conversation `number`; other turns stay as they are."""
        return [
            Message(role=one["role"], content=self.question(one["content"], mix(number, place)))
            if one["role"] == "user" and one["content"].strip()
            else one
            for place, one in enumerate(messages)
        ]

    def question(self, text: str, number: int) -> str:
        """Replace words of a question and put it into one of the templates; code stays as it is."""
        if self.config.leave_code and looks_like_code(text):
            return text
        asked = self.text(text, number)
        if not self._templates:
            return asked
        return self._templates[mix(self._key, number, 2) % len(self._templates)].replace(SLOT, asked.strip())

    def _replaced(self, text: str, key: int) -> str:
        assert self._synonyms is not None
        return self._synonyms.replace(text, self.config.synonym_share, key, self._is_known)


def read_templates(source: str) -> tuple[str, ...]:
    """Read templates: the built-in ones, or those of a file, a list in .json or .yaml, else one on each line.

    Raises:
        UserError: the file cannot be read, holds none, or one of them has not exactly one {question}.
    """
    if source == BUILTIN:
        return BUILTIN_TEMPLATES
    path = user_path(source)
    if path.suffix in (".json", ".yaml", ".yml"):
        content = read_values("templates", path)
    else:
        content = [line.strip() for line in read_setting("templates", path).splitlines() if line.strip()]
    if not isinstance(content, list) or not content or not all(isinstance(one, str) for one in content):
        raise UserError(f"{path} holds no list of templates; expected texts such as: Can you tell me: {SLOT}")
    for one in content:
        if one.count(SLOT) != 1:
            raise UserError(f"{path}: the template {one!r} has {SLOT} {one.count(SLOT)} times; expected it once")
    return tuple(content)
