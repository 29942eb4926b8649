"""Digests of the files that an import reads."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from .source import Work


def digests(files: Mapping[str, Path], work: Work) -> dict[str, str]:
    """Return the SHA-256 of files by name."""
    total, done = sum(path.stat().st_size for path in files.values()), 0
    sums: dict[str, str] = {}
    for name, path in files.items():
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(2**22):
                digest.update(block)
                done += len(block)
                work("reading files", done, total)
        sums[name] = digest.hexdigest()
    return sums
