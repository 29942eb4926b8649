"""Files written whole or not at all, and the words for what the disk says."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ..errors import UserError


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable, where the system can (Windows cannot open a folder)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes `content`, text as UTF-8, beside `path`, then takes its place; a reader sees the old file or the new one.

    Raises:
        OSError: the disk is full or may not be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def cannot_write(path: Path, error: OSError, keeps: str = "") -> UserError:
    """The words for a write that failed: where, what the system said, what to do; `keeps` says what is unharmed."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        cure = "make room on that disk, then type the same command again"
    else:
        cure = "make the folder writable, or work in a folder that is"
    return UserError(f"cannot write {path}: {reason}. {keeps + '. ' if keeps else ''}What to do: {cure}")
