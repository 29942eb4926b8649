"""Tokenised text on disk: folders of plain arrays, mapped into memory, written whole or not at all.

An entry is `tokens/KEY/`: `train.tokens`, `val.tokens` (uint16 or uint32, little-endian), `*.mask` (uint8, only where
some token is not scored), `*.docs` (uint64, where documents start), `heldout.txt`, and `entry.json` with the size and
sha256 of the others. KEY is the digest of everything the content depends on. Entries may be deleted at any time; they
are written again.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ...contract.errors import UserError
from ...contract.file_names import HELDOUT
from ...contract.files import sync_folder, write_whole

PIPELINE_VERSION = 1
"""Part of every key: raise it when the same input would give other tokens."""
ENTRY_VERSION = 1
ABANDONED_SECONDS = 24 * 3600
READ_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Stream:
    """The tokens of one part of one source: end-of-text, document, end-of-text, document, ..., end-of-text."""

    tokens: NDArray[Any]  # (N,)
    """uint16 or uint32."""
    mask: NDArray[np.bool_] | None  # (N,)
    """Which tokens are scored; None when all are."""
    docs: NDArray[np.uint64]  # (documents,)
    """Where each document begins."""


@dataclass(frozen=True)
class Entry:
    """One source, tokenised."""

    train: Stream
    """The part to train on."""
    val: Stream
    """The part that is held out."""
    stats: dict[str, int]
    """Counts of bytes, scored tokens and unknown tokens of both parts."""
    heldout: str
    """The first held-out text."""


class EntryWriter:
    """Writes the arrays of an entry, in turn, into a folder that is not yet in its place."""

    def __init__(self, folder: Path, wide: bool, masked: bool, eos_id: int) -> None:
        self.folder = folder
        self.dtype = np.dtype("<u4" if wide else "<u2")
        self.bytes_written = 0
        self._masked = masked
        self._files: dict[str, tuple[IO[bytes], Any]] = {}
        self._length = {"train": 0, "val": 0}
        for part in ("train", "val"):
            self.append(part, np.array([eos_id]), scored=True)  # the context of the first token
            self._write(f"{part}.docs", b"")

    def append(self, part: str, ids: NDArray[Any], scored: bool) -> None:
        """Add tokens to the end of "train" or "val"."""
        self._write(f"{part}.tokens", ids.astype(self.dtype).tobytes())
        if self._masked:
            self._write(f"{part}.mask", (b"\1" if scored else b"\0") * len(ids))
        self._length[part] += len(ids)

    def start_document(self, part: str) -> None:
        """Record that a document begins with the next token."""
        self._write(f"{part}.docs", np.array([self._length[part]], dtype="<u8").tobytes())

    def finish(self, stats: dict[str, int], heldout: str) -> None:
        """Write the rest, `entry.json` last, and wait for the disk."""
        self._write(HELDOUT, heldout.encode())
        listing = {}
        for name, (file, digest) in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            listing[name] = {"bytes": file.tell(), "sha256": digest.hexdigest()}
            file.close()
        header = {"version": ENTRY_VERSION, "dtype": self.dtype.str, "stats": stats, "files": listing}
        write_whole(self.folder / "entry.json", json.dumps(header, indent=1))

    def close(self) -> None:
        """Close the files, also of an entry that is not finished."""
        for file, _ in self._files.values():
            with contextlib.suppress(OSError):
                file.close()

    def _write(self, name: str, data: bytes) -> None:
        if name not in self._files:
            self._files[name] = ((self.folder / name).open("wb"), hashlib.sha256())
        file, digest = self._files[name]
        file.write(data)
        digest.update(data)
        self.bytes_written += len(data)


def open_entry(folder: Path) -> Entry | None:
    """Open the entry in `folder`, with every byte checked against its digest; None when there is none.

    A damaged entry is named on stderr, removed, and counts as none.
    """
    header_path = folder / "entry.json"
    if not header_path.exists():
        return None
    try:
        header = json.loads(header_path.read_text(encoding="utf-8"))
        if header["version"] != ENTRY_VERSION:
            raise ValueError(f"version {header['version']}, expected {ENTRY_VERSION}")
        for name, expected in header["files"].items():
            _check(folder / name, expected["bytes"], expected["sha256"])
        return Entry(
            train=_stream(folder, "train", header),
            val=_stream(folder, "val", header),
            stats=header["stats"],
            heldout=(folder / HELDOUT).read_bytes().decode(),  # line ends stay as they are
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"the tokenised text in {folder} is damaged ({error}); tokenising it again", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        return None


@contextlib.contextmanager
def new_entry(folder: Path, expected_bytes: int) -> Iterator[Path]:
    """Make a folder to write in, moved to `folder` at the end of the block; of several writers the first one wins.

    Raises:
        UserError: the disk is full (with the folder and `expected_bytes`), or the place cannot be written.
    """
    parent = folder.parent
    temporary: Path | None = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=parent))
        yield temporary
        try:
            temporary.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES) or not (folder / "entry.json").exists():
                raise
        else:
            sync_folder(parent)
            temporary = None
    except OSError as error:
        raise disk_error(error, parent, expected_bytes) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def disk_error(error: OSError, folder: Path, expected_bytes: int) -> UserError:
    """Explain why the cache cannot be written."""
    choose = "choose another folder with --set data.cache_dir=FOLDER or the variable ADAPTIVE_CACHE"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"the disk is full: the tokenised text needs about {expected_bytes:,} bytes in {folder}; free that much, "
            f"or {choose}"
        )
    return UserError(f"cannot write the tokenised text to {folder}: {error.strerror or error}; {choose}")


def _stream(folder: Path, part: str, header: dict[str, Any]) -> Stream:
    masked = f"{part}.mask" in header["files"]
    return Stream(
        tokens=_map(folder / f"{part}.tokens", header["dtype"]),
        mask=_map(folder / f"{part}.mask", "|b1") if masked else None,
        docs=_map(folder / f"{part}.docs", "<u8"),
    )


def _map(path: Path, dtype: str) -> NDArray[Any]:
    if path.stat().st_size == 0:
        return np.zeros(0, dtype=dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype=dtype, mode="r")


def _check(path: Path, num_bytes: int, sha256: str) -> None:
    size = path.stat().st_size
    if size != num_bytes:
        raise ValueError(f"{path.name} has {size} bytes, expected {num_bytes}")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise ValueError(f"{path.name} has the digest {digest.hexdigest()[:12]}, expected {sha256[:12]}")


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders that killed processes left behind."""
    for path in parent.glob(".writing-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
