"""The interface of every protocol's answer, whole or as server-sent events."""

import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from pydantic import TypeAdapter

from ..errors import ServeError
from .body import Body
from .order import Order
from .text import Piece, Text

_PLAIN = TypeAdapter(dict[str, Any])


class Answer(Protocol):
    """Writes the answer to one request, in the shape of a protocol. Frames are bytes of an event stream."""

    def begin(self) -> Iterable[bytes]:
        """Return the frames before the first piece."""

    def piece(self, piece: Piece, text: Text) -> Iterable[bytes]:
        """Return the frames of a piece, which `text` holds already."""

    def finish(self, texts: Sequence[Text]) -> Iterable[bytes]:
        """Return the frames after the last text."""

    def failed(self, error: ServeError) -> Iterable[bytes]:
        """Return the frames of an error after the stream began."""

    def whole(self, texts: Sequence[Text]) -> Body:
        """Return the answer that does not stream."""


def frame(body: Body | dict[str, Any], event: str | None = None) -> bytes:
    """Write one server-sent event."""
    name = b"" if event is None else b"event: " + event.encode() + b"\n"
    return name + b"data: " + json_bytes(body) + b"\n\n"


def json_bytes(body: Body | dict[str, Any]) -> bytes:
    """Write JSON in UTF-8; of a body the fields that were set, null ones included."""
    if isinstance(body, Body):
        return body.__pydantic_serializer__.to_json(body, exclude_unset=True, by_alias=True)
    return _PLAIN.dump_json(body)


def new_id(prefix: str) -> str:
    """Make an id that no other answer has."""
    return f"{prefix}{secrets.token_hex(12)}"


def now() -> int:
    """Return the Unix time in seconds."""
    return int(time.time())


def prompt_tokens(order: Order) -> int:
    """Return the tokens of all prompts; the texts of one prompt follow each other and share it."""
    total, before = 0, None
    for job in order.jobs:
        total += 0 if job.prompt is before else len(job.prompt)
        before = job.prompt
    return total
