"""The chat template of an exported model: messages into the text that the model was trained on.

A template comes with a model and is not trusted: it runs in jinja2's sandbox, where it can change and reach nothing.
"""

from collections.abc import Sequence

from ...contract.errors import UserError
from ...contract.messages import Message

# EOS_MARK stands for the end of a turn while the template runs, so that the characters typed by a person stay text.
# Private-use characters with our name between; a message that holds it is refused.
EOS = "<|endoftext|>"
EOS_MARK = "\ue000adaptive:end-of-text\ue001"
MAX_LENGTH = 10_000_000  # characters of a rendered prompt


def render(template: str, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[str]:
    """The text of `messages`, cut where an end-of-text token stands: that token goes between the pieces.

    Raises UserError when the template does not compile, or fails on these messages.
    """
    from jinja2 import StrictUndefined, TemplateError  # here: 30 ms that a prompt without a template does not pay
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if any(EOS_MARK in message["content"] for message in messages):
        raise UserError("a message holds the mark that the program keeps for itself; remove the private-use characters")
    # The same options as in training, so that a prompt is written as the model saw it.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True
    )

    def refuse(reason: str) -> None:
        raise TemplateError(reason)

    environment.globals["raise_exception"] = refuse  # templates written for other programs call it
    try:
        text = environment.from_string(template.replace(EOS, EOS_MARK)).render(
            messages=list(messages), add_generation_prompt=add_generation_prompt, eos_token=EOS_MARK, bos_token=""
        )
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"the model's chat template failed: {error}; use --raw to send the prompt as it is") from error
    if len(text) > MAX_LENGTH:
        raise UserError(f"the model's chat template made {len(text)} characters, at most {MAX_LENGTH}; use --raw")
    return text.split(EOS_MARK)
