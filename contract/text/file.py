"""The reader of text files, from bytes to characters, for training and for the runtime.

Line ends stay as they are. A byte order mark is dropped; UTF-16 and UTF-32 are decoded where they begin with one;
everything else is UTF-8. Compressed files are decompressed.
"""

import codecs
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from .compression import file_bytes, stream_bytes
from .diagnosis import Pieces, binary, undecodable

# The mark of UTF-32-LE begins with that of UTF-16-LE, so it comes first.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MARK_BYTES = 4


def read_text(path: str | Path) -> str:
    """Read a whole file as text. A pipe can be read too.

    Raises:
        UserError: the file cannot be read or is not text; the message names file, byte offset and line.
    """
    path = Path(path)
    if path.is_file():
        return "".join(text for _, text in text_pieces(path))
    return decode(b"".join(file_bytes(path)), str(path))


def decode(data: bytes, name: str) -> str:
    """Decode bytes that did not come from a file, such as those of stdin, as `read_text` does.

    Args:
        data: The bytes, compressed or not.
        name: Where they come from, for messages.

    Raises:
        UserError: the bytes are not text.
    """
    return "".join(text for _, text in decoded(lambda: stream_bytes(io.BytesIO(data), name), name))


def text_pieces(path: Path) -> Iterator[tuple[bytes, str]]:
    """Read a file in pieces of about 1 MiB: (decompressed bytes, the text decoded from them).

    Raises:
        UserError: the file cannot be read or is not text; the message names file, byte offset and line.
    """
    return decoded(lambda: file_bytes(path), str(path))


def decoded(open_pieces: Pieces, name: str) -> Iterator[tuple[bytes, str]]:
    """Decode one text piece by piece.

    Args:
        open_pieces: Gives the bytes from their beginning; called again only to find out why they are not text.
        name: The file, for messages.

    Raises:
        UserError: binary content, or bytes that the encoding does not allow.
    """
    encoding = ""
    decoder: codecs.IncrementalDecoder = codecs.getincrementaldecoder("utf-8")()
    offset, line = 0, 1  # where the first byte stands that is not decoded yet
    for raw in _with_whole_mark(open_pieces()):
        data = raw
        if not encoding:
            mark, encoding = next((pair for pair in _MARKS if raw.startswith(pair[0])), (b"", "utf-8"))
            decoder = codecs.getincrementaldecoder(encoding)()
            data, offset = raw[len(mark) :], len(mark)
        pending = decoder.getstate()[0]
        if encoding == "utf-8" and b"\0" in data:
            raise binary(open_pieces, name, offset + len(pending) + data.index(b"\0"))
        try:
            text = decoder.decode(data, final=not raw)
        except UnicodeDecodeError as error:
            line += error.object[: error.start].decode(encoding, "ignore").count("\n")
            raise undecodable(
                open_pieces, name, encoding, error.object[error.start], offset + error.start, line
            ) from None
        if encoding != "utf-8" and "\0" in text:
            raise binary(open_pieces, name, offset + len(text[: text.index("\0")].encode(encoding)))
        if raw or text:
            yield raw, text
        line += text.count("\n")
        offset += len(pending) + len(data) - len(decoder.getstate()[0])


def _with_whole_mark(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes, the first piece long enough to hold a byte order mark; an empty piece ends them."""
    source = iter(pieces)
    first = b""
    while len(first) < _MARK_BYTES and (piece := next(source, b"")):
        first += piece
    if first:
        yield first
        yield from source
        yield b""
