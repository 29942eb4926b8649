"""Calls of Mistral: `[TOOL_CALLS]`, then a JSON list of objects, or a name, `[ARGS]` and a JSON object."""

import re

from ....contract.generation_settings import ToolFormat
from .json_call import JsonCall, JsonValue
from .marked import MarkedParser
from .parts import Part, Tools

BEGIN, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_NAME = re.compile(r"[\w.-]+")
_HEAD = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*\w*\s*)?(?:\[ARGS\]\s*)?(?=\{)")
MAX_HEAD = 512
"""Characters between the marker and the arguments."""


class MistralParser(MarkedParser):
    """Reads calls of Mistral, of its older and its newer form."""

    markers = (BEGIN,)
    shown = (BEGIN, ARGS, CALL_ID)

    def __init__(self, format: ToolFormat, tools: Tools) -> None:
        super().__init__(format, tools)
        self._object = JsonCall()
        self._value: JsonValue | None = None
        self._in_list = False

    def enter(self, marker: str) -> None:
        """Begin to read calls."""
        super().enter(marker)
        self._in_list, self._value = False, None

    def _call(self) -> list[Part]:
        if self._in_list:
            return self._next_of_list()
        if self._value is not None:
            return self._arguments_of_name(self._value)
        start = self._pending.lstrip()
        if start.startswith("["):
            self.take(len(self._pending) - len(start) + 1)
            self._in_list, self._object = True, JsonCall()
            return []
        head = _HEAD.match(self._pending)
        if head is not None:
            self.take(head.end())
            self._value = JsonValue()
            return [self.begin_call(head[1])]
        if start and (not _NAME.match(start) or len(self._pending) > MAX_HEAD):
            return self.give_up()
        return []

    def _arguments_of_name(self, value: JsonValue) -> list[Part]:
        count = 0
        while count < len(self._pending) and not value.done:
            value.take(self._pending[count])
            count += 1
        parts = self.arguments(self.take(count))
        if value.done:
            self.leave()
        return parts

    def _next_of_list(self) -> list[Part]:
        if self._object.state == "done":
            rest = self._pending.lstrip()
            self._pending = rest
            if rest[:1] == ",":
                self._pending = rest[1:]
                self._object, self._begun, self._raw = JsonCall(), False, ""
            elif rest:
                self._pending = rest[1:] if rest[0] == "]" else rest
                self.leave()
            return []
        parts = self.read_object(self._object)
        return parts + self.give_up() if self._object.state == "failed" else parts
