"""One look through every item before anything is tokenised: is it readable, what is its digest, where is it cut."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ...contract.errors import UserError
from ...contract.files import write_whole
from ...contract.text_compression import open_file
from ...contract.text_file import text_pieces
from .documents import document_of, encodable
from .records import read_records
from .sources import Item

# A file that changed this shortly before it was read may change again within one tick of its time stamp (git's "racy"
# files): its scan is not remembered.
SETTLED_SECONDS = 2.0
SCAN_VERSION = 1


@dataclass(frozen=True)
class Scan:
    """What one item holds."""

    digest: str  # sha256 of the content
    num_bytes: int
    length: int  # characters of a plain text, documents of records
    chats: int  # how many of the documents are conversations


def scan_item(item: Item, folder: Path, read: Callable[[int], None]) -> Scan:
    """Reads `item`, or remembers doing so: a file of the same place, size, inode and times is taken to be unchanged.

    `folder` holds what is remembered; `read` is told how many bytes were read. Raises UserError for an item that cannot
    be read.
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
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known["stamp"] == stamp:
            return Scan(**known["scan"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # never seen, or unreadable: look again
    started = time.time()
    scan = _scan_text(item.path, read) if item.kind == "text" else _scan_records(item)
    if started - max(stat.st_mtime, stat.st_ctime) > SETTLED_SECONDS:
        with contextlib.suppress(OSError):  # only a shortcut is lost
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
    if item.path is not None:
        with open_file(item.path) as file:
            size = os.fstat(file.fileno()).st_size
    return Scan(digest.hexdigest(), size, length, chats)
