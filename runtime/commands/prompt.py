"""The prompt of a command: read from the command line or stdin, and encoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ...contract.errors import UserError
from ...contract.streams import read_stdin
from ...contract.text.file import decode

if TYPE_CHECKING:
    from ..chat.prompt import ChatOptions
    from ..generation.engine import Engine


def read_prompt(prompt: str) -> str:
    """Return the prompt, read from stdin if it is `-`, without the line end that the shell adds.

    Raises:
        UserError: stdin is closed, cannot be read, or is not text.
    """
    if prompt != "-":
        return prompt
    content = read_stdin()
    try:
        text = decode(content, "stdin")
    except UserError as error:  # its advice is a command for a file
        raise UserError(f"{error} (save the text that you sent to stdin as a file of that name first)") from error
    return text.removesuffix("\n").removesuffix("\r")


def encode(
    engine: Engine, text: str, *, is_chat: bool, where: str = "", options: ChatOptions | None = None
) -> list[int]:
    """Return the ids of a prompt; note on stderr how many tokens are unknown to the tokenizer.

    Args:
        engine: The model.
        text: The prompt.
        is_chat: Whether to put it into the chat template.
        where: What the note begins with.
        options: What a chat has besides the text.

    Raises:
        UserError: It is empty, or the model has no chat template.
    """
    if not text:
        raise UserError("the prompt is empty, expected at least one character; type a text to continue")
    plain = engine.tokenizer.encode_prompt(text)
    unknown = plain.count(-1 if (u := engine.tokenizer.unknown_id) is None else u)
    if unknown:
        click.echo(f"note: {where}{unknown} tokens of the prompt are unknown to this model's tokenizer", err=True)
    return engine.chat([{"role": "user", "content": text}], options) if is_chat else plain
