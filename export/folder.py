"""The folder that an export writes, completely or not at all."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..contract.errors import UserError
from ..contract.file_names import MANIFEST
from ..contract.files import cannot_write, require_utf8_path
from ..runtime.format.manifest import FORMAT


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out` for an exported model, and move it to `out` at the end.

    After an error the folder is deleted and `out` is as before.

    Raises:
        UserError: `out` is not an exported model, or cannot be written.
    """
    out = out.resolve()  # "." has no name to derive another from, and a link itself must not be replaced
    require_utf8_path(out)
    if out.exists() and not _replaceable(out):
        raise UserError(f"{out} exists and is not an exported model, so it was left unchanged; choose another --out")
    try:
        with _moved_at_the_end(out) as folder:
            yield folder
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or out}: {error.strerror or error}; nothing was exported. "
            "Free disk space, or choose another --out"
        ) from error


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out` for the format of another program, and move it to `out` at the end.

    After an error the folder is deleted.

    Raises:
        UserError: `out` exists and is not empty, or cannot be written.
    """
    out = out.resolve()
    if out.exists() and not _is_empty(out):
        raise UserError(f"{out} exists already; choose another --out, or remove it")
    try:
        with _moved_at_the_end(out) as folder:
            yield folder
    except OSError as error:
        raise cannot_write(Path(error.filename or out), error, "Nothing was exported") from error


@contextlib.contextmanager
def _moved_at_the_end(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `out`; after an error `out` is as before."""
    temporary = out.with_name(f".{out.name}.writing-{os.getpid()}")
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process that had the same id
        temporary.mkdir(parents=True)
        yield temporary
        if out.exists():
            out.rename(old)
        temporary.rename(out)
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _is_empty(out: Path) -> bool:
    return out.is_dir() and not any(out.iterdir())


def _replaceable(out: Path) -> bool:
    """Return whether `out` is empty or an exported model; other programs also write a manifest.json."""
    if not out.is_dir() or not (out / MANIFEST).exists():
        return _is_empty(out)
    try:
        content = json.loads((out / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT
