"""A conversation into the ids of a prompt, by the chat template of a model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...contract.errors import UserError
from ...contract.messages import EOS, EOS_MARK, Message, NotAppendingError, Turn, turns
from ..format.manifest import Manifest
from .escaping import Escape
from .renderer import RENDERER, TemplateFailedError, TemplateLimitError
from .templates import template_of

RESERVED = ("messages", "tools", "documents", "add_generation_prompt")
"""Variables of a template that have fields of their own."""


class Encoder(Protocol):
    """What this package needs of a tokenizer."""

    @property
    def added_tokens(self) -> Mapping[str, bool]:
        """The text of each token that is looked for before all others, and whether it is special."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, in which special tokens are the characters they are."""

    def encode_rendered(self, text: str, escaped: Mapping[str, str]) -> list[int]:
        """Return the ids of a text in which added tokens are tokens, and each key of `escaped` is its value as text."""


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """What a conversation has besides its messages."""

    tools: Sequence[Mapping[str, Any]] = ()
    """Functions that the model may call, in the shape of OpenAI's `tools`."""
    documents: Sequence[Mapping[str, Any]] = ()
    """Documents that the model may read, each with `title` and `text`."""
    template: str | None = None
    """Name of the template; None takes the model's own choice."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Further variables of the template, such as `enable_thinking`."""


def chat_ids(
    manifest: Manifest, tokenizer: Encoder, messages: Sequence[Message], options: ChatOptions | None = None
) -> list[int]:
    """Return the ids of a prompt that asks for the next answer, by the model's chat template.

    With a template of ours they are cut as in training: those of a conversation that was trained on begin with those of
    its first turns. With a template of another family they are those of transformers' `apply_chat_template`, except
    that special tokens that people typed stay text.

    Raises:
        UserError: The model has no such chat template, or it fails on these messages.
    """
    options = options or ChatOptions()
    template = template_of(manifest, options.template, tools=bool(options.tools))
    if template.dialect == "huggingface":
        return _foreign_ids(template.text, manifest, tokenizer, messages, options)
    if options.documents or options.variables:
        given = "documents" if options.documents else "variables of the chat template"
        raise UserError(f"found {given}, this model's chat template takes none; leave them out")
    ids: list[int] = []
    for turn in prompt_turns(template.text, messages):
        ids += tokenizer.encode(turn.text) + [manifest.model.eos_id] * turn.eos
    return ids


def _foreign_ids(
    template: str, manifest: Manifest, tokenizer: Encoder, messages: Sequence[Message], options: ChatOptions
) -> list[int]:
    taken = next((name for name in RESERVED if name in options.variables), None)
    if taken is not None:
        raise UserError(
            f"found {taken} among the variables of the chat template, which has a field of its own; use that"
        )
    plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
    try:
        given = json.dumps(
            [plain, list(options.tools), list(options.documents), dict(options.variables)], ensure_ascii=False
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"found a conversation that is no JSON: {error}; correct it") from error
    escape = Escape(tokenizer.added_tokens, template, given)
    special = {f"{role}_token": text for role, text in manifest.generation.special_tokens.items()}
    variables = (
        special
        | escape.value(dict(options.variables))
        | {
            "messages": with_reasoning(escape.messages(plain)),
            "tools": escape.value(list(options.tools)) or None,
            "documents": escape.value(list(options.documents)) or None,
            "add_generation_prompt": True,
        }
    )
    try:
        text = RENDERER.render(template, "huggingface", variables)
    except (TemplateFailedError, TemplateLimitError) as error:
        raise failed(error) from error
    return tokenizer.encode_rendered(*escape.rendered(text))


def with_reasoning(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with their reasoning under every name that templates read it by, as transformers does."""
    result = []
    for message in messages:
        names = ("reasoning_content", "thinking", "reasoning")
        reasoning = next((message[name] for name in names if message.get(name) is not None), None)
        both = {} if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}
        result.append(both or message)
    return result


def prompt_turns(template: str, messages: Sequence[Message]) -> list[Turn]:
    """Return the text that asks for the next answer, in the pieces in which training tokenised such a conversation.

    Raises:
        UserError: The template does not compile, or fails on these messages.
    """
    marked = template.replace(EOS, EOS_MARK)  # a template that spells the token out means the token

    def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
        variables = {"messages": list(messages), "eos_token": EOS_MARK, "bos_token": ""}
        return RENDERER.render(marked, "own", {**variables, "add_generation_prompt": add_generation_prompt})

    try:
        try:
            return turns(messages, render, reply=True)
        except (NotAppendingError, TemplateFailedError):
            pass  # the whole conversation may still be one that the template takes
        # Training refuses such a template for such a conversation, so there is no cut to repeat.
        *ended, rest = render(messages, True).split(EOS_MARK)
        return [*(Turn(text, False, True) for text in ended), Turn(rest, False, False)]
    except (TemplateFailedError, TemplateLimitError) as error:
        raise failed(error) from error


def failed(error: UserError) -> UserError:
    """Return the error of a template for people."""
    return UserError(f"the model's chat template failed: {error}; use --raw to send the prompt as it is")
