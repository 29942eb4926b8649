"""What a resumed run may have otherwise than it began with, and the words for what it may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .config import RunConfig

MAY_CHANGE = frozenset(
    f"trainer.{key}"
    for key in (
        *(
            "steps",
            "max_seconds",
            "checkpoint_every",
            "keep_checkpoints",
            "eval_every",
            "eval_tokens",
            "final_eval_tokens",
        ),
        *(
            "log_every",
            "max_bad_steps",
            "skip_spikes",
            "save",
            "device",
            "threads",
            "compile",
            "parallel",
            "checkpoint_activations",
            "tensorboard",
            "trackers",
        ),
    )
) | {"data.cache_dir", "data.dir", "parent"}
"""How long, how watched, on what, read from where, and held against what; so may all of `gates`."""


def differences(stored: RunConfig, wanted: RunConfig) -> list[str]:
    """`key: stored -> wanted` for all that a resumed run may not change; the text itself is held by its digest."""
    before, after = flatten(stored.model_dump(mode="json")), flatten(wanted.model_dump(mode="json"))
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted({*before, *after} - MAY_CHANGE)
        if before.get(key) != after.get(key) and not key.startswith("gates.")
    ]


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"dim": 8}} -> {"model.dim": 8}; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
