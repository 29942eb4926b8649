"""A conversation with a model: a question in, its answer shown as it is generated, and what it cost."""

from collections.abc import Iterator
from typing import Any, Protocol

from ...contract.errors import UserError
from ..dial.dial import Dial
from ..generation.engine import Engine
from ..generation.generation import Generation
from ..generation.request import Token
from ..generation.sampling.params import Params
from ..generation.summary import Summary, summarise
from .commands import run_command
from .history import History

RESERVED = 256
"""Tokens that an answer has at least, or a quarter of a shorter context: older turns are forgotten for them."""


class Screen(Protocol):
    """Where a conversation is shown."""

    def answer(self, text: str) -> None:
        """Show more of an answer."""

    def answered(self, tokens: list[Token], summary: Summary, usage: str) -> None:
        """End an answer, and show what it cost."""

    def note(self, text: str) -> None:
        """Show something about the conversation."""


class Chat:
    """The state of a conversation.

    Args:
        engine: The model.
        screen: Where it is shown.
        name: Of the model, for the file of a conversation.
        history: The turns so far.
        settings: Fields of `Params` that were given.
        usage: What to report of each answer: none, summary or tokens.
    """

    def __init__(
        self, engine: Engine, screen: Screen, *, name: str, history: History, settings: dict[str, Any], usage: str
    ) -> None:
        if engine.manifest.chat_template is None:
            raise UserError(
                "this model has no chat template: it was not trained on conversations; continue a text with: "
                "adaptive generate TEXT"
            )
        self.engine, self.screen, self.name, self.history, self.usage = engine, screen, name, history, usage
        self._dial = {key: value for key, value in settings.items() if key in Dial.__dataclass_fields__}
        self._settings = {key: value for key, value in settings.items() if key not in self._dial}
        self.used = 0
        """Tokens of the context that the conversation took at its last answer."""
        self.params()  # a wrong setting is reported before the first question

    def params(self, **more: Any) -> Params:
        """Return the settings of the next answer."""
        return self.engine.params(**{**self._settings, **self._dial, **more})

    def set_dial(self, dial: dict[str, Any]) -> None:
        """Set how much of the model runs, in place of what was set before.

        Raises:
            UserError: The model does not have that dial; the one before stays.
        """
        before, self._dial = self._dial, dial
        try:
            self.engine.request([0], self.params(max_new_tokens=1))  # looks the dial up in the model's curve
        except UserError:
            self._dial = before
            raise

    def set(self, name: str, value: float) -> None:
        """Set a field of `Params`.

        Raises:
            UserError: The value is outside its range; the one before stays.
        """
        before, self._settings = self._settings, {**self._settings, name: value}
        try:
            self.params()
        except UserError:
            self._settings = before
            raise

    def unset(self, name: str) -> None:
        """Go back to the model's default."""
        self._settings.pop(name, None)

    def line(self, text: str) -> None:
        """Do what a line says: a command, or a question.

        Raises:
            UserError: It cannot be done; the conversation goes on.
            EndOfChat: The line ends it.
        """
        if text.startswith("/"):
            said = run_command(self, text)
            if said:
                self.screen.note(said)
        elif text.strip():
            self.ask(text)

    def ask(self, question: str) -> None:
        """Ask, and show the answer. An interrupted answer stays as far as it came.

        Raises:
            UserError: The question does not fit the context, or the template refuses the conversation; the question is
                taken back.
        """
        before = list(self.history.turns)
        self.history.add("user", question)
        tokens: list[Token] = []
        try:
            generation = self._generation()
            self._show(generation, tokens)
        except UserError:
            self.history.turns = before
            raise
        text = "".join(token.text for token in tokens).strip()
        self.used = generation.prompt_tokens + len(tokens)
        self.history.add("assistant", text)
        self.screen.answered(tokens, summarise(generation.request, tokens), self.usage)

    def _show(self, generation: Generation, tokens: list[Token]) -> None:
        begun = False
        try:
            for token in generation:
                tokens.append(token)
                text = token.text if begun else token.text.lstrip()
                if text:
                    begun = True
                    self.screen.answer(text)
        except KeyboardInterrupt:
            generation.close()

    def _generation(self) -> Generation:
        """Begin an answer; the oldest turns are forgotten where the context has no room for it."""
        context = self.engine.manifest.model.context_length
        asked = self.params().max_new_tokens
        least = min(RESERVED, context // 4) if asked is None else asked
        forgotten = 0
        while True:
            ids = self.engine.chat(self.history.messages())
            room = context - len(ids)
            if room >= least:
                break
            if not self.history.forget_oldest():
                raise UserError(
                    f"the question and the system prompt have {len(ids)} tokens, and an answer {least}; this model's "
                    f"context is {context} tokens; ask less, or type: /set max_new_tokens {max(room, 1)}"
                )
            forgotten += 1
        if forgotten:
            self.screen.note(f"the context of {context} tokens is full: forgot the oldest {forgotten} of the questions")
        return self.engine.generate(ids, self.params(max_new_tokens=asked or room))

    def status(self) -> str:
        """Return one line: the model, its dial, and how much of the context is used."""
        context = self.engine.manifest.model.context_length
        dial = "".join(f" at {name} {value:g}" for name, value in self._dial.items() if value is not None)
        return f"{self.name}{dial}: {self.used} of {context} tokens used"

    def state(self) -> Iterator[str]:
        """Yield lines about the settings and the context."""
        yield self.status()
        given = {**self._settings, **self._dial}
        values = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                           for name, value in given.items() if value is not None)  # fmt: skip
        yield f"set: {values or 'nothing'}"
        yield f"system: {self.history.system or 'nothing'}"
        yield f"usage: {self.usage}"
