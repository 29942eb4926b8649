"""List the places where an ONNX file stores its weights, without onnx and before ONNX Runtime opens a file.

A crafted `location` (`../../etc/passwd`, an absolute path, a link) has repeatedly made loaders read files outside the
model's folder (CVE-2022-25882, CVE-2024-27318, CVE-2024-5187). So this module walks the graph message by message, with
the few field numbers of onnx.proto that can lead to a tensor, and refuses malformed protobuf.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...contract.errors import UserError

MAX_BYTES = 512 * 2**20
"""Largest graph that is read, without its weights."""
MAX_DEPTH = 64
"""Deepest nesting of graphs inside nodes inside graphs."""

# message -> field number -> message to enter. Field numbers of onnx.proto (IR 11); unlisted ones lead to no tensor.
ENTER: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # of TensorProto


@dataclass(frozen=True)
class Reference:
    """A weight outside the graph: `length` bytes at `offset` of the file `location`."""

    location: str
    offset: int
    length: int


def external_data(path: Path) -> Iterator[Reference]:
    """Yield every reference to data outside the ONNX file `path`.

    Raises:
        UserError: the file is too large or not well-formed.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UserError(
            f"{path} has {size} bytes without its weights, at most {MAX_BYTES} are read; export the model again"
        )
    try:
        yield from _walk(memoryview(path.read_bytes()), "model", 0)
    except (IndexError, ValueError) as error:
        raise UserError(f"{path} is not a well-formed ONNX file: {error}; export the model again") from error


def _walk(message: memoryview, kind: str, depth: int) -> Iterator[Reference]:
    if depth > MAX_DEPTH:
        raise ValueError(f"graphs nested deeper than {MAX_DEPTH}")
    enter = ENTER[kind]
    entries: dict[str, str] = {}
    external = False
    for field, value in _fields(message):
        if kind == "tensor":
            if field == EXTERNAL_DATA and isinstance(value, memoryview):
                pair = {number: bytes(text).decode() for number, text in _fields(value) if isinstance(text, memoryview)}
                if pair.get(1, "") in entries:
                    raise ValueError(f"a weight states its {pair.get(1, '')!r} twice")
                entries[pair.get(1, "")] = pair.get(2, "")
            external = external or (field in (EXTERNAL_DATA, DATA_LOCATION) and value != 0)
        elif field in enter and isinstance(value, memoryview):
            yield from _walk(value, enter[field], depth + 1)
    if external:
        # A missing location becomes "": the caller refuses everything but the one allowed name.
        yield Reference(entries.get("location", ""), int(entries.get("offset", "0")), int(entries.get("length", "0")))


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield (number, value) of each field of a protobuf message: bytes if length-delimited, else the number or 0."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
        elif wire == 2:
            length, at = _varint(message, at)
            if at + length > end:
                raise ValueError(f"a field of {length} bytes at {at} reaches beyond the {end} bytes of its message")
            yield key >> 3, message[at : at + length]
            at += length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
            yield key >> 3, 0
        else:
            raise ValueError(f"unknown wire type {wire} at byte {at}")
    if at != end:
        raise ValueError(f"a field ends at byte {at} of a message of {end}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    byte = message[at]
    if byte < 0x80:  # nearly all of them
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    while True:
        at += 1
        byte = message[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
        shift += 7
        if shift > 63:
            raise ValueError(f"a number of more than ten bytes at {at}")
