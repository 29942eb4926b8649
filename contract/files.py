"""Files that are written whole or not at all, and the message when the disk refuses."""

import errno
import os
from pathlib import Path

from .errors import UserError


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, where the system can do so (Windows cannot open a folder)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_name(path: Path) -> Path:
    """Name the file that this process writes before it replaces `path`: two writers never share one."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_temporary_files(folder: Path) -> None:
    """Remove what killed processes left in `folder`. Only for a folder that this process has locked."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) to a temporary file, flush it to the disk, then replace `path` by it.

    A reader sees the old file or the new one, never a part.

    Raises:
        OSError: the disk is full or cannot be written; the old file is untouched.
    """
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def cannot_write(path: Path, error: OSError, keeps: str = "") -> UserError:
    """Explain a write that failed: the place, the system's reason, what is unharmed (`keeps`), what to do."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        cure = "make room on that disk, then type the same command again"
    else:
        cure = "make the folder writable, or choose another place"
    return UserError(f"cannot write {path}: {reason}. {keeps + '. ' if keeps else ''}What to do: {cure}")


def user_path(text: str | Path) -> Path:
    """Make the path that a user typed, with a leading `~` or `~NAME` expanded if there is such a user."""
    return Path(os.path.expanduser(text))  # noqa: PTH111  # Path.expanduser raises where there is no such user


def require_utf8_path(path: Path) -> None:
    """Check that libraries which take paths as UTF-8, as those of ONNX do, can open `path`.

    Raises:
        UserError: `path` is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the path {str(path)!r} is not UTF-8, and ONNX opens no such path; expected a path in UTF-8. Rename "
            "the folder, or use another one"
        ) from error
