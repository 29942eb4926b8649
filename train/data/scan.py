"""Scan every item before anything is tokenised: can it be read, what is its digest, how long is it."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ...contract.errors import UserError
from ...contract.files import write_whole
from ...contract.text_compression import without_compression
from ...contract.text_file import text_pieces
from .records import read_records
from .records.document import document_of, encodable
from .sources import Item

# A file that changed this shortly before it was read may change again within one tick of its time stamp (git's "racy"
# files): its scan is not remembered.
SETTLED_SECONDS = 2.0
SCAN_VERSION = 1


@dataclass(frozen=True)
class Scan:
    """The content of one item in numbers."""

    digest: str
    """sha256 of the content."""
    num_bytes: int
    """Its size; of compressed text, that of the text."""
    length: int
    """Characters of a plain text, documents of records."""
    chats: int
    """Documents that are conversations."""


def scan_item(item: Item, folder: Path, read: Callable[[int], None]) -> Scan:
    """Read an item, unless it was scanned before: a file of the same path, size, inode and times is not changed.

    Args:
        item: What is read.
        folder: Where earlier scans are stored.
        read: Gets the count of bytes read.

    Raises:
        UserError: the item cannot be read.
    """
    if item.path is None:
        return _scan_records(item)
    try:
        stat = item.path.stat()
    except OSError as error:
        raise UserError(f"cannot read {item.path}: {error.strerror}; check the path and its permissions") from None
    key = [SCAN_VERSION, str(item.path.resolve()), item.kind, item.text_field]
    if item.end_marker is not None:
        key.append(item.end_marker)
    stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    memory = folder / (hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32] + ".json")
    try:
        earlier = json.loads(memory.read_text(encoding="utf-8"))
        if earlier["stamp"] == stamp:
            return Scan(**earlier["scan"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # never scanned, or unreadable: scan it
    started = time.time()
    scan = _scan_text(item.path, read) if item.kind == "text" else _scan_records(item)
    if started - max(stat.st_mtime, stat.st_ctime) > SETTLED_SECONDS:
        with contextlib.suppress(OSError):  # it only saves time
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_whole(memory, json.dumps({"stamp": stamp, "scan": asdict(scan)}))
    return scan


def _scan_text(path: Path, read: Callable[[int], None]) -> Scan:
    digest, size, length = hashlib.sha256(), 0, 0
    for raw, text in text_pieces(path):
        digest.update(raw)
        size += len(raw)
        length += len(text)
        read(len(raw))
    return Scan(digest.hexdigest(), size, length, chats=0)


def _scan_records(item: Item) -> Scan:
    length = chats = size = 0
    digest = hashlib.sha256()
    for where, record in read_records(item):
        document = document_of(record, item.text_field, where, item.end_marker)
        if not document:
            continue
        length += 1
        if isinstance(document, str):
            raw = encodable(document, where).encode()
        else:
            chats += 1
            raw = json.dumps(document).encode()
        size += len(raw)
        # Kind and length first, so that no two lists of documents share a digest.
        digest.update(b"%c%d:" % (b"t" if isinstance(document, str) else b"c", len(raw)))
        digest.update(raw)
    if item.path is not None and without_compression(item.path) == item.path:
        size = item.path.stat().st_size
    return Scan(digest.hexdigest(), size, length, chats)
