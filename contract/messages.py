"""A conversation, as training data and as a prompt."""

from typing import TypedDict


class Message(TypedDict):
    """One turn: `role` is "user", "assistant" or "system"."""

    role: str
    content: str
