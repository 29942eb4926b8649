"""The part that parsers share: text until a call begins, then the call, then text again."""

from ....contract.generation_settings import ToolFormat
from .json_call import JsonCall
from .markers import split_at_marker
from .parts import ArgumentsPart, CallBegin, Part, TextPart, Tools, new_call_id


class MarkedParser:
    """Base of the parsers: each reads calls after its markers, and numbers them.

    Args:
        format: The format, for the ids of calls.
        tools: The tools that may be called.
    """

    markers: tuple[str, ...] = ()
    """Texts that begin a call."""
    shown: tuple[str, ...] = ()
    """All markers that the parser reads, which the text must show where they are special tokens."""

    def __init__(self, format: ToolFormat, tools: Tools) -> None:
        self.tools = tools
        self._format = format
        self._pending = ""
        self._raw = ""
        """What was read since the marker, while it may still be text."""
        self._in_call = False
        self._calls = 0
        self._begun = False  # the call has its `CallBegin`

    def push(self, text: str) -> list[Part]:
        """Add text, and return the parts that became certain."""
        self._pending += text
        parts: list[Part] = []
        while self._pending:
            before = self._pending, self._in_call, self._begun
            parts += self._call() if self._in_call else self._text()
            if (self._pending, self._in_call, self._begun) == before:
                break
        return parts

    def flush(self) -> list[Part]:
        """Return what is left at the end; a call that did not become one is text."""
        rest = self._raw + self._pending if self._in_call and not self._begun else self._pending
        hidden = self._in_call and self._begun
        self._pending = self._raw = ""
        return [TextPart(rest)] if rest and (rest.strip() or not self._calls) and not hidden else []

    def enter(self, marker: str) -> None:
        """Begin to read a call after `marker`."""
        self._in_call, self._raw, self._begun = True, marker, False

    def leave(self) -> None:
        """Go back to text."""
        self._in_call, self._raw = False, ""

    def give_up(self) -> list[Part]:
        """Return what was taken for a call as text; nothing where the call has begun."""
        raw, self._pending = (self._raw + self._pending, "") if not self._begun else ("", self._pending)
        self.leave()
        return [TextPart(raw)] if raw else []

    def take(self, count: int) -> str:
        """Take characters of what is pending."""
        taken, self._pending = self._pending[:count], self._pending[count:]
        if not self._begun:
            self._raw += taken
        return taken

    def begin_call(self, name: str) -> Part:
        """Return the part that begins a call."""
        self._begun = True
        self._calls += 1
        return CallBegin(self._calls - 1, new_call_id(self._format), name)

    def arguments(self, text: str) -> list[Part]:
        """Return more arguments of the call that was begun last."""
        return [ArgumentsPart(self._calls - 1, text)] if text else []

    def read_object(self, call: JsonCall) -> list[Part]:
        """Feed what is pending to a call that is a JSON object."""
        count, arguments = call.feed(self._pending)
        self.take(count)
        parts: list[Part] = []
        if call.name and not self._begun and (arguments or call.state == "done"):
            parts.append(self.begin_call(call.name))
        return parts + (self.arguments(arguments) if self._begun else [])

    def _text(self) -> list[Part]:
        certain, marker, self._pending = split_at_marker(self._pending, self.markers)
        if marker is not None:
            self.enter(marker)
        if not certain.strip() and self._calls:
            return []
        return [TextPart(certain)] if certain else []

    def _call(self) -> list[Part]:
        raise NotImplementedError
