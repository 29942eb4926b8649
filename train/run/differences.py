"""What a resumed run may have otherwise than it began with, and the words for what it may not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...contract.errors import UserError
from ..config.run_config import RunConfig
from .folder import Run

ALWAYS = frozenset(
    f"trainer.{key}"
    for key in (
        *("steps", "max_seconds", "checkpoint_every", "keep_checkpoints", "save"),
        *("eval_every", "eval_tokens", "final_eval_tokens", "log_every", "max_bad_steps", "skip_spikes"),
        *("device", "threads", "matmul", "compile", "parallel", "checkpoint_activations", "tensorboard", "trackers"),
        "routing_snapshots",
    )
) | {"data.cache_dir", "data.dir", "parent"}
"""How long, how watched, on what, read from where, and held against what; so may all of `gates`."""

NEVER: Mapping[str, str] = {
    "optimizer.kind": "what one optimizer remembers of each weight is nothing to another",
    "trainer.seed": "the text would come in another order, some of it twice and some not at all",
    "trainer.sequence_length": "how far the text was read is counted in windows of its length",
    "trainer.sequence_lengths": "how far the text was read is counted in windows of each length",
    "recipe": "it says where the run began",
    "model": "the weights are those of the model that they were trained in",
    "tokenizer": "the weights know each token by its number",
    "data": "how far the text was read would mean another place in it",
}
"""The longest name that a setting begins with -> why not even --override-resume changes it. Every setting that is in
neither list is one that a run can go on with, though it is no longer the run that it began as: rates, clipping, the
schedule, losses, the size of a batch, precision."""


def differences(stored: RunConfig, wanted: RunConfig) -> dict[str, tuple[Any, Any]]:
    """key -> (stored, wanted) of all that a resumed run may not change by itself; the text is held by its digest."""
    before, after = flatten(stored.model_dump(mode="json")), flatten(wanted.model_dump(mode="json"))
    return {
        key: (before.get(key), after.get(key))
        for key in sorted({*before, *after} - ALWAYS)
        if before.get(key) != after.get(key) and not key.startswith("gates.")
    }


def reason_against(key: str) -> str | None:
    """Why nothing changes this setting of a run that has begun; None where --override-resume does."""
    parts = key.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((NEVER[prefix] for prefix in prefixes if prefix in NEVER), None)


def require_same(run: Run, stored: RunConfig, wanted: RunConfig, override: bool) -> dict[str, tuple[Any, Any]]:
    """What `override` lets be otherwise than in the checkpoint: key -> (stored, wanted).

    Raises:
        UserError: without `override`, anything differs; with it, something that makes it another run. Each is listed.
    """
    changed = differences(stored, wanted)
    refused = [key for key in changed if reason_against(key) is not None] if override else list(changed)
    safe = bool(changed) and all(reason_against(key) is None for key in changed)
    hint = "; or change it from here on: the same command with --override-resume" if safe else ""
    refuse(run, [line(key, *changed[key]) for key in refused], hint)
    return changed


def line(key: str, stored: Any, wanted: Any) -> str:
    """`key: stored -> wanted`, and why it may never be so."""
    reason = reason_against(key)
    return f"{key}: {stored!r} -> {wanted!r}" + (f" (never: {reason})" if reason else "")


def refuse(run: Run, changed: Sequence[str], hint: str = "") -> None:
    """Raises UserError listing the differences, if there are any."""
    if changed:
        listed = "\n  ".join(changed)
        raise UserError(
            f"{run.path} began with other settings, so it would not be the same run:\n  {listed}\n"
            f"Leave these out to go on ({run.resume_command}), or begin a new run under another --name{hint}"
        )


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"dim": 8}} -> {"model.dim": 8}; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
