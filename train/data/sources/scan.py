"""The scan of every item before tokenisation: whether it can be read, its digest and its length."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ....contract.errors import UserError
from ....contract.files import write_whole
from ....contract.text.compression import without_compression
from ....contract.text.file import text_pieces
from ..records import read_records
from ..records.document import document_of, encodable
from .sources import Item, Log, Source

# A file that changed this shortly before it was read may change again within one tick of its time stamp (git's "racy"
# files): its scan is not remembered.
SETTLED_SECONDS = 2.0
SCAN_VERSION = 1


Progress = Callable[[str, int, int], None]  # (what is being done, bytes done, bytes in all)


@dataclass(frozen=True)
class Scan:
    """The content of one item in numbers."""

    digest: str
    """sha256 of the content."""
    num_bytes: int
    """Bytes of the item, after decompression."""
    length: int
    """Characters of a plain text, documents of records."""
    chats: int
    """Documents that are conversations."""


def scan_sources(
    sources: Sequence[Source], folder: Path, progress: Progress, log: Log
) -> list[list[tuple[Item, Scan]]]:
    """Scan the items of every source; empty ones are left out, or refused where they were named.

    Args:
        sources: The sources to scan.
        folder: Where earlier scans are stored.
        progress: Called now and then with the bytes read.
        log: Called with a message about each item that is left out.

    Raises:
        UserError: an item cannot be read, or a source has no text.
    """
    total = sum(item.path.stat().st_size for source in sources for item in source.items if item.path is not None)
    done = 0

    def read(count: int) -> None:
        nonlocal done
        done += count
        progress("reading", min(done, total), total)

    scanned = []
    for source in sources:
        items = []
        for item in source.items:
            scan = scan_item(item, folder, read)
            if scan.length:
                items.append((item, scan))
                continue
            what = "is empty" if item.kind == "text" or scan.num_bytes == 0 else "holds no text in its records"
            if item.chosen:
                raise UserError(f"{item.name} {what}; expected text to train on, so fill it or leave it out")
            log(f"{item.name} {what}; left out")
        if not items:
            raise UserError(f"all {len(source.items)} files of {source.name} are empty; expected text to train on")
        scanned.append(items)
    return scanned


def scan_item(item: Item, folder: Path, read: Callable[[int], None]) -> Scan:
    """Read an item, unless it was scanned before: a file of the same path, size, inode and times is not changed.

    Args:
        item: The file or data set to read.
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
