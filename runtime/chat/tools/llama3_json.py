"""Calls of Llama 3: an answer that is a JSON object with `name` and `parameters`, maybe after `<|python_tag|>`."""

from ....contract.generation_settings import ToolFormat
from .json_call import JsonCall
from .marked import MarkedParser
from .markers import overlap
from .parts import Part, Tools

TAG = "<|python_tag|>"


class Llama3JsonParser(MarkedParser):
    """Reads calls of Llama 3; an object without a marker is a call where it begins the answer and names a tool."""

    markers = (TAG,)
    shown = (TAG,)

    def __init__(self, format: ToolFormat, tools: Tools) -> None:
        super().__init__(format, tools)
        self._object = JsonCall()
        self._at_start = True

    def enter(self, marker: str) -> None:
        """Begin to read a call."""
        super().enter(marker)
        self._at_start = False
        self._object = JsonCall() if marker == TAG else JsonCall(self.tools, strict=True)

    def _text(self) -> list[Part]:
        if self._at_start:
            start = self._pending.lstrip()
            if start.startswith("{"):
                blank = self._pending[: len(self._pending) - len(start)]
                self._pending = start
                self.enter(blank)
                return []
            if not start or overlap(start, TAG) == len(start):
                return []
            self._at_start = False
        return super()._text()

    def _call(self) -> list[Part]:
        if self._object.state != "done":
            parts = self.read_object(self._object)
            return parts + self.give_up() if self._object.state == "failed" else parts
        rest = self._pending.lstrip().removeprefix(";").removeprefix(",").lstrip()
        if not rest or (len(rest) < len(TAG) and TAG.startswith(rest)):
            return []
        self._pending = rest.removeprefix(TAG)
        if rest.startswith(TAG):
            self.enter(TAG)
        elif rest.startswith("{"):
            self.enter("")
        else:
            self.leave()
        return []
