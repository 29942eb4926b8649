"""Records of conversation into text, by a jinja2 template, and which of that text is an answer."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ....contract.errors import UserError
from ....contract.files import user_path
from ....contract.messages import EOS, EOS_MARK, Message, Turn, turns

if TYPE_CHECKING:
    from jinja2 import Template

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
    """A jinja2 template that turns messages into text."""

    def __init__(self, text: str | None = None) -> None:
        self.text = DEFAULT_TEMPLATE if text is None else text

    @classmethod
    def from_config(cls, value: str | None) -> "ChatTemplate":
        """Take the default, jinja2 text as it stands, or the file that `value` names.

        Raises:
            UserError: The file cannot be read.
        """
        if value is None or "{" in value or "\n" in value:
            return cls(value)
        try:
            return cls(user_path(value).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"cannot read the chat template {value!r} ({error}); expected jinja2 text or the path of a UTF-8 file "
                "with it"
            ) from None

    @cached_property
    def _compiled(self) -> "Template":
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
            return environment.from_string(self.text.replace(EOS, EOS_MARK))
        except TemplateSyntaxError as error:
            raise UserError(f"the chat template does not compile: line {error.lineno}: {error.message}") from None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """Return the text, with `EOS_MARK` wherever the template puts the end-of-text token.

        Raises:
            UserError: The template does not compile, or fails on these messages.
        """
        try:
            return self._compiled.render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                eos_token=EOS_MARK,
                bos_token="",
            )
        except UserError:
            raise
        except Exception as error:  # a template may fail in any way: undefined names, refused attributes, arithmetic
            raise UserError(f"the chat template fails on a conversation: {error}") from None

    def segments(self, messages: Sequence[Message], where: str) -> list[Turn]:
        """Cut the conversation as a prompt is cut in generation, so that training sees the same tokens.

        Raises:
            UserError: The template fails, or a later message changes how it writes an earlier one; the message begins
                with `where`.
        """
        try:
            return turns(messages, self.render)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
