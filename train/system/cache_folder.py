"""The folder of caches, and the digests that name their entries."""

import hashlib
import json
import os
from pathlib import Path

from ...contract.files import user_path


def cache_folder(configured: str | None) -> Path:
    """Choose the configured folder, else `$ADAPTIVE_CACHE`, else `adaptive-lm` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if configured:
        return user_path(configured)
    if os.environ.get("ADAPTIVE_CACHE"):
        return user_path(os.environ["ADAPTIVE_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return user_path(base) / "adaptive-lm"


def digest_of(value: object) -> str:
    """Return the sha256 of `value` as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
