"""The files of a model's folder, whose links may point only into the model's own repository folder."""

import json
from pathlib import Path
from typing import Any

from ..errors import ForeignFileError, short

LARGEST_JSON = 64 * 2**20
"""Bytes of a JSON file of settings, or of an index."""
LARGEST_TOKENIZER = 256 * 2**20
"""Bytes of a tokenizer.json."""
LARGEST_TEMPLATE = 2**20
"""Bytes of a chat template."""


def snapshot_of(path: Path) -> Path:
    """Return the folder with config.json: `path`, or the snapshot where it is a model's folder in the hub's cache.

    Raises:
        ForeignFileError: There is no such folder.
    """
    if (path / "config.json").exists():
        return path
    snapshots = path / "snapshots"
    if not snapshots.is_dir():
        gguf = sorted(file.name for file in path.glob("*.gguf"))
        hint = f"; it has {gguf[0]}: import that file" if gguf else ""
        raise ForeignFileError(
            f"{path} has no config.json, so it is not the folder of a model{hint or '; name the folder that holds it'}"
        )
    try:
        revision = (path / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        revision = ""
    if revision and "/" not in revision and (snapshots / revision / "config.json").exists():
        return snapshots / revision
    candidates = sorted(file.parent for file in snapshots.glob("*/config.json"))
    if len(candidates) != 1:
        raise ForeignFileError(
            f"{path} is a folder of the hub's cache with {len(candidates)} downloaded snapshots; expected one, or "
            f"refs/main that names one: give the folder of one, such as {snapshots}/NAME"
        )
    return candidates[0]


def repository_of(folder: Path) -> Path:
    """Return the folder that links may point into: that of the model in the hub's cache, or the folder itself."""
    if folder.parent.name == "snapshots" and (folder.parent.parent / "blobs").is_dir():
        return folder.parent.parent
    return folder


def model_files(folder: Path, repository: Path | None = None) -> dict[str, Path]:
    """Return the files of a folder by name, links resolved.

    Args:
        folder: The folder of a model, or one inside it.
        repository: Where links may lead; None: into the model's repository folder.

    Raises:
        ForeignFileError: A link points out of the model's repository folder, or the folder cannot be read.
    """
    root = (repository or repository_of(folder)).resolve()
    files: dict[str, Path] = {}
    try:
        for path in sorted(folder.iterdir()):
            target = path.resolve()
            if not path.is_symlink() and not path.is_file():
                continue
            if not target.is_relative_to(root):
                raise ForeignFileError(
                    f"{path} is a link to {target}, outside the folder of the model, {root}; copy that file into the "
                    "folder"
                )
            if target.is_file():
                files[path.name] = target
            elif path.is_symlink() and not target.exists():
                raise ForeignFileError(f"{path} is a link to {target}, which is missing; download the model again")
    except OSError as error:
        raise ForeignFileError(f"cannot read {folder}: {error.strerror}; make the folder readable") from error
    return files


def read_json(path: Path, most: int = LARGEST_JSON) -> Any:
    """Read a JSON file of at most `most` bytes.

    Raises:
        ForeignFileError: It is larger, cannot be read, or is no JSON.
    """
    text = read_small(path, most)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ForeignFileError(f"{path} is not JSON: {short(error)}; download the model again") from error


def read_small(path: Path, most: int) -> str:
    """Read a text file of at most `most` bytes.

    Raises:
        ForeignFileError: It is larger, cannot be read, or is not UTF-8.
    """
    try:
        size = path.stat().st_size
        if size > most:
            raise ForeignFileError(
                f"{path} has {size / 2**20:.0f} MiB, expected at most {most / 2**20:.0f} for such a file; download the "
                "model again"
            )
        return path.read_bytes().decode()
    except OSError as error:
        raise ForeignFileError(f"cannot read {path}: {error.strerror}; make the file readable") from error
    except UnicodeDecodeError as error:
        raise ForeignFileError(f"{path} is not UTF-8: {error}; download the model again") from error
