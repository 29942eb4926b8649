"""Settings that a resumed run may change, and the messages for those that it may not."""

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
) | {"data.cache_dir", "data.dir", "parent", "distillation.teacher.model", "distillation.stored_gib"}
"""Settings that a resumed run may always change, as may all of `gates`: length, logging, machine, folders, parent."""

NEVER: Mapping[str, str] = {
    "optimizer.kind": "the state of one optimizer means nothing to another",
    "trainer.seed": "the text would come in another order, some of it twice and some not at all",
    "trainer.sequence_length": "the position in the text is counted in windows of its length",
    "trainer.sequence_lengths": "the position in the text is counted in windows of each length",
    "recipe": "it names the recipe that the run began from",
    "origin": "it names the weights that the run began from",
    "distillation.teacher": "the run learns from these weights to its end",
    "distillation.hidden_layers": "the matrices between these layers have been trained",
    "lora": "the adapters have these shapes and this scale",
    "model": "the weights belong to the model that they were trained in",
    "tokenizer": "the weights belong to the token ids of the tokenizer",
    "data": "the position in the text would point to another place",
}
"""Setting or section -> why not even --override-resume changes it; the longest matching name counts. A setting in
neither list can be changed with --override-resume, but the result differs from the run as it began: rates, clipping,
the schedule, losses, batch size, precision."""


def differences(stored: RunConfig, wanted: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return key -> (stored, wanted) of every difference that is not always allowed; digests check the text."""
    before, after = flatten(stored.model_dump(mode="json")), flatten(wanted.model_dump(mode="json"))
    return {
        key: (before.get(key), after.get(key))
        for key in sorted({*before, *after} - ALWAYS)
        if before.get(key) != after.get(key) and not key.startswith("gates.")
    }


def reason_against(key: str) -> str | None:
    """Return why this setting of a run can never change; None if --override-resume can change it."""
    parts = key.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((NEVER[prefix] for prefix in prefixes if prefix in NEVER), None)


def require_same(run: Run, stored: RunConfig, wanted: RunConfig, override: bool) -> dict[str, tuple[Any, Any]]:
    """Return the changes that `override` allows: key -> (stored, wanted).

    Raises:
        UserError: a setting differs and `override` is not given, or cannot be changed at all; the message lists all.
    """
    changed = differences(stored, wanted)
    refused = [key for key in changed if reason_against(key) is not None] if override else list(changed)
    safe = bool(changed) and all(reason_against(key) is None for key in changed)
    hint = "; or change it from here on: the same command with --override-resume" if safe else ""
    refuse(run, [line(key, *changed[key]) for key in refused], hint)
    return changed


def line(key: str, stored: Any, wanted: Any) -> str:
    """Write `key: stored -> wanted`, and why it can never change."""
    reason = reason_against(key)
    return f"{key}: {stored!r} -> {wanted!r}" + (f" (never: {reason})" if reason else "")


def refuse(run: Run, changed: Sequence[str], hint: str = "") -> None:
    """Refuse to resume if there are differences.

    Raises:
        UserError: there are differences; the message lists them.
    """
    if changed:
        listed = "\n  ".join(changed)
        raise UserError(
            f"{run.path} began with other settings, so the resumed run would not be the same run:\n  {listed}\n"
            f"Leave these out to resume it ({run.resume_command}), or begin a new run under another --name{hint}"
        )


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten {"model": {"dim": 8}} to {"model.dim": 8}; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
