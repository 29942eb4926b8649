"""Bytes of a file, decompressed where it is compressed: gzip, bzip2, xz, Zstandard, found by their first bytes."""

import io
import shlex
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import UserError

READ_BYTES = 2**16
CHUNK_BYTES = 2**20
ZSTD_LIBRARIES = ("compression.zstd", "zstandard", "pyarrow")
"""Modules that read Zstandard, best first: the standard library since Python 3.14, else a package if installed."""

_SIGNATURES = (
    ("gzip", b"\x1f\x8b\x08"),
    ("bzip2", b"BZh"),
    ("xz", b"\xfd7zXZ\0"),
    ("zstd", b"\x28\xb5\x2f\xfd"),
)
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # behind "BZh" and a digit, which a text may begin with
_SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LFS_POINTER_BYTES = 1024


def compression_of(head: bytes) -> str | None:
    """Name the compression whose signature `head` (10 bytes or more) begins with; None for other content."""
    for name, signature in _SIGNATURES:
        if head.startswith(signature) and (name != "bzip2" or head[4:10] in _BZIP2_BLOCKS):
            return name
    return None


def without_compression(path: Path) -> Path:
    """Drop `.gz`, `.bz2`, `.xz` or `.zst` from the end of a name."""
    return path.with_suffix("") if path.suffix.lower() in _SUFFIXES else path


def open_file(path: Path) -> BinaryIO:
    """Open a file to read its bytes as they are stored.

    Raises:
        UserError: the system refuses, with its reason.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from None


def file_bytes(path: Path) -> Iterator[bytes]:
    """Read a file in pieces of at most about `CHUNK_BYTES`, decompressed. Memory stays flat.

    Raises:
        UserError: the file cannot be read, its compressed data is damaged or cut short, or it is a Git LFS pointer.
    """
    with open_file(path) as file:
        yield from stream_bytes(file, str(path))


def stream_bytes(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Read an open stream as `file_bytes` does; `name` is for messages."""
    try:
        head = _read_whole(file, _LFS_POINTER_BYTES)
        _refuse_lfs_pointer(head, name)
        compression = compression_of(head)
        if compression is None:
            if head:
                yield head + file.read(max(0, CHUNK_BYTES - len(head)))
            while raw := file.read(CHUNK_BYTES):
                yield raw
        elif compression == "zstd":
            yield from _zstd(_Prefixed(head, file), name)
        else:
            yield from _members(compression, head, file, name)
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or error}; check the file and its disk") from None


def _read_whole(file: BinaryIO, size: int) -> bytes:
    """Read `size` bytes, or what is left: a pipe may give fewer at a time."""
    data = b""
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data


def refuse_pointer(path: Path) -> None:
    """Raise UserError where a file is only a Git LFS pointer."""
    with open_file(path) as file:
        _refuse_lfs_pointer(file.read(_LFS_POINTER_BYTES), str(path))


def _refuse_lfs_pointer(head: bytes, name: str) -> None:
    if len(head) < _LFS_POINTER_BYTES and head.startswith(_LFS_POINTER) and b"\noid sha256:" in head:
        raise UserError(
            f"{name} is a Git LFS pointer, not the file that it stands for; expected the content. "
            "Fetch it, in its repository: git lfs install && git lfs pull"
        )


class _Gzip:
    """A gzip member behind the interface that the decompressors of bz2 and lzma have."""

    def __init__(self) -> None:
        import zlib

        self._object = zlib.decompressobj(wbits=31)
        self._tail = b""

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._tail and not self.eof

    def decompress(self, data: bytes, max_length: int) -> bytes:
        output = self._object.decompress(self._tail + data, max_length)
        self._tail = self._object.unconsumed_tail
        return output


def _decompressor(compression: str) -> Any:
    if compression == "gzip":
        return _Gzip()
    try:
        module = import_module({"bzip2": "bz2", "xz": "lzma"}[compression])
    except ImportError:
        raise UserError(f"this Python was built without {compression}; decompress the file first") from None
    return module.BZ2Decompressor() if compression == "bzip2" else module.LZMADecompressor()


def _members(compression: str, raw: bytes, file: BinaryIO, name: str) -> Iterator[bytes]:
    """Decompress the members of a stream one after the other; zero bytes may pad its end."""
    errors: tuple[type[BaseException], ...] = (EOFError, OSError, import_module("zlib").error)
    if compression == "xz":
        errors = (*errors, import_module("lzma").LZMAError)
    signature = dict(_SIGNATURES)[compression]
    offset = 0  # of the end of `raw`
    decompressor = _decompressor(compression)
    while raw:
        offset += len(raw)
        data = raw
        while True:
            try:
                output = decompressor.decompress(data, CHUNK_BYTES)
            except errors as error:
                raise _damaged(name, compression, f"{error}") from None
            if output:
                yield output
            data = b""
            if decompressor.eof:
                data = decompressor.unused_data.lstrip(b"\0")
                while not data and (raw := file.read(READ_BYTES)):
                    offset += len(raw)
                    data = raw.lstrip(b"\0")
                if not data:
                    return
                if not (data[: len(signature)] == signature[: len(data)]):
                    raise UserError(
                        f"{name}: the {compression} data ends at offset {offset - len(data)} and other bytes follow; "
                        "expected no bytes after it. Write the whole part to a file and read that: "
                        f"{compression} -dc {shlex.quote(name)} > {shlex.quote(without_compression(Path(name)).name)}"
                    )
                decompressor = _decompressor(compression)
            elif decompressor.needs_input:
                break
        raw = file.read(READ_BYTES)
    raise _damaged(name, compression, "it ends inside the compressed data, so it was probably cut short")


def _damaged(name: str, compression: str, reason: str) -> UserError:
    return UserError(f"{name} is damaged {compression} data ({reason}); fetch or compress it again")


class _Prefixed(io.RawIOBase):
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self._head, self._file = head, file

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data, self._head = (self._head, b"") if size < 0 else (self._head[:size], self._head[size:])
        return data + self._file.read(-1 if size < 0 else size - len(data))

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _zstd(file: _Prefixed, name: str) -> Iterator[bytes]:
    for library in ZSTD_LIBRARIES:
        try:
            module = import_module(library)
        except ImportError:
            continue
        try:
            reader = _zstd_reader(library, module, file)
            while output := reader.read(CHUNK_BYTES):
                yield output
        except Exception as error:  # each library raises its own kind
            if isinstance(error, UserError):
                raise
            raise _damaged(name, "zstd", str(error).splitlines()[0] if str(error) else type(error).__name__) from None
        return
    raise UserError(
        f"{name} is compressed with Zstandard, and nothing that reads it is installed: pip install zstandard, "
        f"or decompress it: zstd -d {shlex.quote(name)}"
    )


def _zstd_reader(library: str, module: Any, file: _Prefixed) -> Any:
    openers: dict[str, Callable[[], Any]] = {
        "compression.zstd": lambda: module.ZstdFile(file),
        "zstandard": lambda: _Checked(module.ZstdDecompressor(), file),
        "pyarrow": lambda: module.CompressedInputStream(module.PythonFile(file, "r"), "zstd"),
    }
    return openers[library]()


class _Checked:
    """The frames of a stream by the `zstandard` package, whose own reader takes a cut frame for a whole one."""

    def __init__(self, factory: Any, file: _Prefixed) -> None:
        self._factory, self._file = factory, file
        self._frame: Any = None
        self._data = b""

    def read(self, size: int) -> bytes:
        while True:
            if not self._data:
                self._data = self._file.read(min(size, READ_BYTES))
            if not self._data:
                if self._frame is not None:
                    raise EOFError("it ends inside the compressed data, so it was probably cut short")
                return b""
            self._frame = self._frame or self._factory.decompressobj()
            output: bytes = self._frame.decompress(self._data)
            self._data = b""
            if self._frame.eof:
                self._data, self._frame = self._frame.unused_data, None
            if output:
                return output
