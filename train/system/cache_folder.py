"""Where caches are stored, and the digests that name their entries."""

import hashlib
import json
import os
from pathlib import Path


def cache_folder(configured: str | None) -> Path:
    """The folder of the config, else `$ADAPTIVE_CACHE`, else `adaptive-lm` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if configured:
        return Path(configured).expanduser()
    if os.environ.get("ADAPTIVE_CACHE"):
        return Path(os.environ["ADAPTIVE_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "adaptive-lm"


def digest_of(value: object) -> str:
    """sha256 of `value` as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
