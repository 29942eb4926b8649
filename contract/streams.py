"""The standard streams of a command: closed, full and narrow ones handled in one place.

`guard_streams` replaces `sys.stdout` and `sys.stderr` once, before a command runs. After that, all code writes to them
as usual:

- A character that the encoding of the stream lacks is replaced: `·` by `-`, `…` by `...`, others by `?`.
- A write to stdout that the system refuses raises a `UserError`; a closed pipe stays a `BrokenPipeError`.
- A write to stderr that the system refuses is dropped: unreadable messages are no reason to fail.
- After a failed write a stream drops everything, so that the interpreter does not fail again when it exits.
"""

import codecs
import contextlib
import io
import os
import sys
from typing import Any, BinaryIO, TextIO

from .errors import UserError

REPLACEMENTS = {
    "·": "-", "–": "-", "—": "-", "…": "...", "‘": "'", "’": "'", "“": '"', "”": '"', "→": "->", "×": "x", "±": "+-",
    "≤": "<=", "≥": ">=", "■": "#", "␣": "_",
}  # fmt: skip
"""Characters of our own output and what stands for them where an encoding lacks them."""

_ERRORS = "adaptive-replace"
_ASCII = "adaptive-ascii"
"""ASCII under another name: click writes UTF-8 to a stream whose encoding is called ASCII."""


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(REPLACEMENTS.get(character, "?") for character in text), error.end


def _find_ascii(name: str) -> codecs.CodecInfo | None:
    if name.replace("_", "-") != _ASCII:
        return None
    ascii_codec = codecs.lookup("ascii")
    return codecs.CodecInfo(
        ascii_codec.encode,
        ascii_codec.decode,
        incrementalencoder=ascii_codec.incrementalencoder,
        incrementaldecoder=ascii_codec.incrementaldecoder,
        name=_ASCII,
    )


codecs.register_error(_ERRORS, _replace)
codecs.register(_find_ascii)


class _GuardedBytes(io.RawIOBase):
    """The bytes below a text stream.

    Args:
        raw: Where the bytes go; None drops them.
        quiet: Drop what the system refuses to write instead of raising.
    """

    def __init__(self, raw: io.RawIOBase | BinaryIO | None, *, quiet: bool) -> None:
        self._raw = raw
        self._quiet = quiet
        self._failed = raw is None

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._raw is not None and self._raw.isatty()

    def fileno(self) -> int:
        if self._raw is None:
            raise io.UnsupportedOperation("this stream is closed")
        return self._raw.fileno()

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        if self._raw is None or self._failed:
            return size
        try:
            written = self._raw.write(data)
        except OSError as error:
            self._failed = True
            if self._quiet:
                return size
            if isinstance(error, BrokenPipeError):
                raise
            raise UserError(
                f"cannot write to stdout: {error.strerror or error}; make room, or send the output to another place: "
                "> FILE"
            ) from error
        return size if written is None else written


def _guarded(stream: TextIO | None, *, quiet: bool) -> TextIO:
    raw = None if stream is None else getattr(stream.buffer, "raw", stream.buffer)
    encoding = "utf-8" if stream is None else stream.encoding
    if codecs.lookup(encoding).name == "ascii":
        encoding = _ASCII
    guarded = _GuardedBytes(raw, quiet=quiet)
    return io.TextIOWrapper(
        io.BufferedWriter(guarded),
        encoding=encoding,
        errors=_ERRORS,
        line_buffering=quiet or guarded.isatty(),
    )


def guard_streams() -> None:
    """Guard stdout and stderr of this process from now on.

    Raises:
        UserError: stdout is closed, so that no result could be given.
    """
    reserve_descriptors()
    closed = sys.stdout is None
    sys.stderr = _guarded(sys.stderr, quiet=True)
    sys.stdout = _guarded(sys.stdout, quiet=False)
    if closed:
        raise UserError("cannot write to stdout: it is closed; open it, or send the output to a file: > FILE")


def reserve_descriptors() -> None:
    """Open the null device in place of standard streams that are closed.

    Otherwise the next file that is opened gets the number of such a stream, and a library that prints would write into
    that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)


def read_stdin() -> bytes:
    """Read all of stdin.

    Raises:
        UserError: stdin is closed or cannot be read.
    """
    if sys.stdin is None:
        raise UserError("stdin is closed, expected text to read; type: echo TEXT | adaptive ...")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise UserError(f"cannot read stdin: {error.strerror}; type: echo TEXT | adaptive ...") from error
