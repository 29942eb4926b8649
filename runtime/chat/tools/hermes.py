"""Calls of Hermes and Qwen: `<tool_call>`, a JSON object with `name` and `arguments`, `</tool_call>`."""

from ....contract.generation_settings import ToolFormat
from .json_call import JsonCall
from .marked import MarkedParser
from .markers import split_at_marker
from .parts import Part, Tools

BEGIN, END = "<tool_call>", "</tool_call>"


class HermesParser(MarkedParser):
    """Reads calls of Hermes and Qwen."""

    markers = (BEGIN,)
    shown = (BEGIN, END)

    def __init__(self, format: ToolFormat, tools: Tools) -> None:
        super().__init__(format, tools)
        self._object = JsonCall()

    def enter(self, marker: str) -> None:
        """Begin to read a call."""
        super().enter(marker)
        self._object = JsonCall()

    def _call(self) -> list[Part]:
        if self._object.state not in ("done", "failed"):
            parts = self.read_object(self._object)
            return parts + self.give_up() if self._object.state == "failed" and not self._begun else parts
        _, marker, self._pending = split_at_marker(self._pending, (END, BEGIN))
        if marker == END:
            self.leave()
        elif marker == BEGIN:  # the end was left out
            self.enter(marker)
        return []
