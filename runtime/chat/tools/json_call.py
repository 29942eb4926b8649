"""One call as a JSON object, read character by character: its name, then its arguments as they come."""

import json
from collections.abc import Collection
from typing import Literal

NAMES = ("name", "function")
ARGUMENTS = ("arguments", "parameters")
OTHERS = ("type", "id", "index")
MAX_HELD = 1_000_000
"""Characters of a value that is held until it is complete."""
State = Literal["open", "key", "colon", "value", "next", "done", "failed"]


class JsonValue:
    """Finds the end of a JSON value; its content is not checked."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = self._escaped = False
        self._first = ""
        self.done = False

    def take(self, char: str) -> bool:
        """Add a character; return whether it is part of the value, which a delimiter after a number is not."""
        if not self._first:
            self._first = char
            self._quoted = char == '"'
            self._depth = int(char in "{[")
            return True
        if self._quoted:
            if self._escaped or char == "\\":
                self._escaped = not self._escaped
            elif char == '"':
                self._quoted = False
                self.done = not self._depth
            return True
        if not self._depth and (char in ",]}" or char.isspace()):  # after true, null or a number
            self.done = True
            return False
        self._quoted = char == '"'
        self._depth += (char in "{[") - (char in "}]")
        self.done = not self._depth and char in "}]"
        return True


class JsonCall:
    """A JSON object with the name of a tool and its arguments, in any order.

    Args:
        names: The names that a call may have; None for any.
        strict: Whether the object may be no call at all, so that a key of no call ends it at once.
    """

    def __init__(self, names: Collection[str] | None = None, *, strict: bool = False) -> None:
        self._names, self._strict = names, strict
        self._state: State = "open"
        self._key = self._held = ""
        self._value = JsonValue()
        self._early = ""  # arguments that came before the name
        self._has_arguments = False
        self.name = ""
        """The name, once it is known."""

    @property
    def state(self) -> State:
        """Where it is: "done" after its last brace, "failed" where it is no call."""
        return self._state

    def feed(self, text: str) -> tuple[int, str]:
        """Add text; return how many characters of it were taken, and the arguments that became certain."""
        certain: list[str] = []
        for place, char in enumerate(text):
            if self._state in ("done", "failed"):
                return place, "".join(certain)
            again = True
            while again:
                again, released = self._take(char)
                if released:
                    certain.append(released)
        return len(text), "".join(certain)

    def _take(self, char: str) -> tuple[bool, str]:
        """Move on by a character; return whether it must be taken again, and arguments that became certain."""
        match self._state:
            case "value" if self._held or not char.isspace():
                return self._in_value(char)
            case "key" if self._held:
                self._held += char
                if self._value.take(char) and self._value.done:
                    self._key = self._loads(self._held)
                    self._held = ""
                    known = self._key in (*NAMES, *ARGUMENTS, *OTHERS)
                    self._state = "colon" if self._state != "failed" and (known or not self._strict) else "failed"
            case _ if char.isspace():
                pass
            case "open" if char == "{":
                self._state = "key"
            case "key" if char == '"':
                self._value = JsonValue()
                self._value.take(char)
                self._held = char
            case "colon" if char == ":":
                self._state, self._value = "value", JsonValue()
            case "next" if char == ",":
                self._state = "key"
            case "next" if char == "}":
                self._state = "done" if self.name and (self._has_arguments or not self._strict) else "failed"
                if self._state == "done" and not self._has_arguments:
                    return False, "{}"
            case _:
                self._state = "failed"
        if len(self._held) > MAX_HELD:
            self._state = "failed"
        return False, ""

    def _in_value(self, char: str) -> tuple[bool, str]:
        streams = self._key in ARGUMENTS and self.name != "" and (self._held or char)[0] == "{"
        taken = self._value.take(char)
        if taken and not (streams and self._held):  # of a value that streams, the first character marks its kind
            self._held += char
        released = char if streams and taken else ""
        if self._value.done:
            if streams:
                self._has_arguments = True
            else:
                released = self._complete(self._held)
            self._held = ""
            self._state = "next" if self._state == "value" else self._state
        elif len(self._held) > MAX_HELD:
            self._state = "failed"
        return not taken and self._state != "failed", released

    def _complete(self, value: str) -> str:
        """Take a value that was held; return arguments that became certain."""
        if self._key in NAMES:
            name = self._loads(value)
            if not name or (self._names is not None and name not in self._names):
                self._state = "failed"
                return ""
            self.name = name
            return self._early
        if self._key in ARGUMENTS:
            if value.startswith('"'):  # JSON inside a string
                value = self._loads(value)
            if not value.lstrip().startswith("{"):
                value = "{}" if value == "null" else ""
            if not value:
                self._state = "failed"
                return ""
            self._has_arguments = True
            if not self.name:
                self._early = value
                return ""
            return value
        return ""

    def _loads(self, text: str) -> str:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, str):
            self._state = "failed"
            return ""
        return value
