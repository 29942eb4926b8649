"""A conversation, and where its text is cut: the same in training data and in a prompt."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict

from .errors import UserError

EOS = "<|endoftext|>"
EOS_MARK = "\ue000adaptive:end-of-text\ue001"
"""Stands for the end-of-text token while a template runs, so that the same characters typed by a person stay text.

Private-use characters with our name between; a message that holds it is refused.
"""


class Message(TypedDict):
    """One turn: `role` is "user", "assistant", "system" or "tool"."""

    role: str
    content: NotRequired[str]
    """Missing where an answer only calls tools."""
    tool_calls: NotRequired[list[dict[str, Any]]]
    """Calls of an answer, in the shape of OpenAI's, with `arguments` as an object."""
    tool_call_id: NotRequired[str]
    """The call whose result this turn is."""
    name: NotRequired[str]
    """Name of the tool, or of the speaker."""
    reasoning_content: NotRequired[str]
    """Thoughts before an answer."""


class Turn(NamedTuple):
    """A piece of a conversation that is tokenised on its own."""

    text: str
    answer: bool
    """Whether the assistant is the speaker."""
    eos: bool
    """Whether the end-of-text token follows."""


class NotAppendingError(UserError):
    """A chat template that writes an earlier message in another way once a later one follows."""


def turns(
    messages: Sequence[Message], render: Callable[[Sequence[Message], bool], str], *, reply: bool = False
) -> list[Turn]:
    """Cut a conversation where a prompt ends and an answer begins, and at each end-of-text token.

    Tokens never span a cut. So the ids of a prompt, which ends before an answer, are the first ids of the conversation
    with that answer, whatever the tokenizer does at the start of a text.

    Args:
        messages: The conversation.
        render: Returns the text of the first messages by the chat template, with `EOS_MARK` for each end-of-text token;
            with True, followed by the text that begins the answer of the assistant.
        reply: Whether to end with the text that begins the next answer.

    Raises:
        NotAppendingError: A later message changes the text of an earlier one.
        UserError: A message holds `EOS_MARK`.
    """
    if any(EOS_MARK in message.get("content", "") for message in messages):
        raise UserError("a message holds the mark that the program keeps for itself; remove the private-use characters")
    pieces: list[Turn] = []
    done = ""

    def advance(count: int, prompt: bool, answer: bool) -> None:
        nonlocal done
        text = render(messages[:count], prompt)
        if not text.startswith(done):
            raise NotAppendingError(
                "with this chat template a later message changes the text of an earlier one, so prompts and answers "
                "cannot be told apart; use a template that only appends"
            )
        *ended, rest = text[len(done) :].split(EOS_MARK)
        pieces.extend(Turn(piece, answer, True) for piece in ended)
        if rest:
            pieces.append(Turn(rest, answer, False))
        done = text

    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            advance(index, True, False)
            advance(index + 1, False, True)
    if reply:
        advance(len(messages), True, False)
    elif messages and messages[-1]["role"] != "assistant":
        advance(len(messages), False, False)
    return pieces
