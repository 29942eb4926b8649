"""The chat template of an exported model: messages into the text that the model was trained on.

A template comes with a model and is not trusted: it runs in jinja2's sandbox, where it can change and reach nothing.
"""

from collections.abc import Sequence

from ...contract.errors import UserError
from ...contract.messages import EOS, EOS_MARK, Message, NotAppendingError, Turn, turns
from ..format.manifest import Manifest
from .tokenizer import Tokenizer

FAILURES = (ArithmeticError, LookupError, TypeError, ValueError, RecursionError, MemoryError)  # of jinja2's code
MAX_LENGTH = 10_000_000  # characters of a rendered prompt


def chat_ids(manifest: Manifest, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Return the ids of a prompt that asks for the next answer, by the model's chat template.

    They are cut as in training: those of a conversation that was trained on begin with those of its first turns.

    Raises:
        UserError: The model has no chat template, or it fails on these messages.
    """
    if manifest.chat_template is None:
        raise UserError("this model has no chat template: it was not trained on conversations; use --raw")
    ids: list[int] = []
    for turn in prompt_turns(manifest.chat_template, messages):
        ids += tokenizer.encode(turn.text) + [manifest.model.eos_id] * turn.eos
    return ids


def prompt_turns(template: str, messages: Sequence[Message]) -> list[Turn]:
    """Return the text that asks for the next answer, in the pieces in which training tokenised such a conversation.

    Raises:
        UserError: The template does not compile, or fails on these messages.
    """
    from jinja2 import StrictUndefined, TemplateError  # here: 30 ms that a prompt without a template does not pay
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # The same options as in training, so that a prompt is written as the model saw it.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True
    )

    def refuse(reason: str) -> None:
        raise TemplateError(reason)

    environment.globals["raise_exception"] = refuse  # templates written for other programs call it

    def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
        text = compiled.render(
            messages=list(messages), add_generation_prompt=add_generation_prompt, eos_token=EOS_MARK, bos_token=""
        )
        if len(text) > MAX_LENGTH:
            raise UserError(
                f"the model's chat template made {len(text)} characters, at most {MAX_LENGTH}; use --raw to send the "
                "prompt as it is"
            )
        return text

    try:
        compiled = environment.from_string(template.replace(EOS, EOS_MARK))
        try:
            return turns(messages, render, reply=True)
        except NotAppendingError:
            pass
        except UserError:
            raise
        except (TemplateError, *FAILURES):
            pass  # the whole conversation may still be one that the template takes
        # Training refuses such a template for such a conversation, so there is no cut to repeat.
        *ended, rest = render(messages, True).split(EOS_MARK)
        return [*(Turn(text, False, True) for text in ended), Turn(rest, False, False)]
    except UserError:
        raise
    except (TemplateError, *FAILURES) as error:
        raise UserError(f"the model's chat template failed: {error}; use --raw to send the prompt as it is") from error
