"""Records of conversation into text, by a jinja2 template, and which of that text is an answer."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from ...contract.errors import UserError
from ...contract.messages import Message

EOS = "<|endoftext|>"

# Stands for the end of a turn while we render, so that the same characters typed by a person stay plain text.
# Private-use characters with our name between: no text that we know of holds this.
_EOS_MARK = "\ue000adaptive:end-of-text\ue001"

DEFAULT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{ 'Assistant: ' + message.content | trim + eos_token }}
{%- else -%}
{{ message.role | capitalize + ': ' + message.content | trim + '\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""


class ChatTemplate:
    """A jinja2 template that turns messages into text.

    Raises UserError when the template does not compile, or fails on a conversation.
    """

    def __init__(self, text: str | None = None) -> None:
        self.text = DEFAULT_TEMPLATE if text is None else text

    @classmethod
    def from_config(cls, value: str | None) -> "ChatTemplate":
        """The default, jinja2 text as it stands, or the file that `value` names."""
        if value is None or "{" in value or "\n" in value:
            return cls(value)
        try:
            return cls(Path(value).expanduser().read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"cannot read the chat template {value!r} ({error}); expected jinja2 text or the path of a UTF-8 file "
                "with it"
            ) from None

    @cached_property
    def _compiled(self):  # type: ignore[no-untyped-def]
        from jinja2 import StrictUndefined, TemplateSyntaxError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> str:  # the name that published templates call
            raise UserError(f"the chat template refuses this conversation: {message}")

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True
        )
        environment.globals["raise_exception"] = raise_exception
        try:
            # A template that spells the token out means the token.
            return environment.from_string(self.text.replace(EOS, _EOS_MARK))
        except TemplateSyntaxError as error:
            raise UserError(f"the chat template does not compile: line {error.lineno}: {error.message}") from None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """The text, with a private mark wherever the template puts the end-of-text token."""
        try:
            text: str = self._compiled.render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                eos_token=_EOS_MARK,
                bos_token="",
            )
        except UserError:
            raise
        except Exception as error:  # a template may fail in any way: undefined names, refused attributes, arithmetic
            raise UserError(f"the chat template fails on a conversation: {error}") from None
        return text

    def segments(self, messages: Sequence[Message], where: str) -> list[tuple[str, bool, bool]]:
        """The conversation as (text, is an answer, end-of-text after it), cut where a prompt ends and an answer begins.

        The cuts are those of generation: the prompt is what the template renders with `add_generation_prompt` before
        the assistant speaks, so training sees prompt and answer tokenised exactly as generation will. Raises UserError
        when the template is not a prefix code: when a later turn changes how an earlier one is written.
        """
        pieces: list[tuple[str, bool]] = []
        done = ""

        def advance(count: int, prompt: bool, answer: bool) -> None:
            nonlocal done
            text = self.render(messages[:count], prompt)
            if not text.startswith(done):
                raise UserError(
                    f"{where}: with this chat template a later message changes the text of an earlier one, so prompts "
                    "and answers "
                    "cannot be told apart; use a template that only appends"
                )
            pieces.append((text[len(done) :], answer))
            done = text

        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                advance(index, True, False)
                advance(index + 1, False, True)
        if messages and messages[-1]["role"] != "assistant":
            advance(len(messages), False, False)
        return [cut for text, answer in pieces for cut in _cut_at_marks(text, answer)]


def _cut_at_marks(text: str, answer: bool) -> list[tuple[str, bool, bool]]:
    parts = text.split(_EOS_MARK)
    cuts = [(part, answer, True) for part in parts[:-1]]
    return [*cuts, (parts[-1], answer, False)] if parts[-1] else cuts
