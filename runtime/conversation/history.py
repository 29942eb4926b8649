"""The turns of a conversation, and the file that keeps them."""

import json
from pathlib import Path
from typing import Any

from ...contract.errors import UserError
from ...contract.files import cannot_write, user_path, write_whole
from ...contract.messages import Message

VERSION = 1
ROLES = ("user", "assistant", "tool")
MOST_BYTES = 64 * 2**20
"""Size of a file that is read at most."""


class History:
    """The system prompt and the turns so far."""

    def __init__(self, system: str | None = None) -> None:
        self.system = system
        """What the model is told before the first turn; None for nothing."""
        self.turns: list[Message] = []

    def messages(self) -> list[Message]:
        """Return all messages, in the form that chat templates take."""
        first: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        return first + self.turns

    def add(self, role: str, content: str) -> None:
        """Add a turn."""
        self.turns.append({"role": role, "content": content})

    def take_back(self) -> str | None:
        """Remove the last question with all that followed it, and return it; None where there is none."""
        for index in range(len(self.turns) - 1, -1, -1):
            if self.turns[index]["role"] == "user":
                question = self.turns[index]["content"]
                del self.turns[index:]
                return question
        return None

    def forget_oldest(self) -> bool:
        """Remove the oldest question with its answer; return False where only the last question is left."""
        questions = [index for index, turn in enumerate(self.turns) if turn["role"] == "user"]
        if len(questions) < 2:
            return False
        del self.turns[: questions[1]]
        return True

    def save(self, path: str, model: str) -> Path:
        """Write the conversation as JSON, and return the path.

        Raises:
            UserError: It cannot be written; the file that was there is unharmed.
        """
        place = user_path(path)
        content = {"version": VERSION, "model": model, "system": self.system, "messages": self.turns}
        try:
            write_whole(place, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        except OSError as error:
            raise cannot_write(place, error, "The conversation goes on") from error
        return place

    def load(self, path: str) -> Path:
        """Read a conversation in place of this one, and return the path.

        Raises:
            UserError: The file is missing, or is no conversation; this one is unharmed.
        """
        place = user_path(path)
        try:
            if place.stat().st_size > MOST_BYTES:
                raise UserError(f"{place} has {place.stat().st_size} bytes, a conversation at most {MOST_BYTES}")
            content = json.loads(place.read_text("utf-8"))
        except OSError as error:
            raise UserError(f"cannot read {place}: {error.strerror}; list files with: ls {place.parent}") from error
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{place} is no conversation: {error}; expected a file that /save wrote") from error
        problem = problem_of(content)
        if problem is not None:
            raise UserError(f"{place} is no conversation: {problem}; expected a file that /save wrote")
        self.system, self.turns = content["system"], content["messages"]
        return place


def problem_of(content: Any) -> str | None:
    """Return why the content of a file is no conversation; None where it is one."""
    if not isinstance(content, dict) or not {"version", "system", "messages"} <= set(content):
        return "found no object with `version`, `system` and `messages`"
    if content["version"] != VERSION:
        return f"found version {str(content['version'])[:20]}, expected {VERSION}"
    if not isinstance(content["system"], str | None):
        return "`system` is neither a text nor null"
    messages = content["messages"]
    if not isinstance(messages, list):
        return "`messages` is no list"
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            return f"message {number} has none of the roles {', '.join(ROLES)}"
        if not isinstance(message.get("content"), str):
            return f"message {number} has no text in `content`"
    return None
