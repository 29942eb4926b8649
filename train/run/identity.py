"""The data and the machine of a run: a resumed run needs the same text, and other differences are logged."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from ...contract.errors import UserError
from ..data import Corpus
from ..data.augment.config import AugmentConfig
from ..model import ModelConfig
from ..model.experts import native
from ..parallel.world import World
from ..system.progress import Progress
from .checkpoints.checkpoint import Checkpoint
from .folder import Run


def identity_of(
    model: ModelConfig, corpus: Corpus, device: torch.device, precision: str, world: World
) -> dict[str, Any]:
    """Return what every checkpoint records of the data and the machine."""
    in_half = device.type == "cpu" and precision == "bf16"
    swiglu = model.ffn.activation == "silu" and model.ffn.gated and not model.ffn.bias
    in_cpp = in_half and model.ffn.routing != "dense" and swiglu and native.serves(model.dim)
    return {
        "data_digest": corpus.digest,
        "tokenizer_sha256": hashlib.sha256(corpus.tokenizer_json().encode()).hexdigest(),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "device": device.type,
        "ranks": world.size,
        "kernels": "C++" if in_cpp else "torch",
    }


def compare_identity(run: Run, checkpoint: Checkpoint, identity: Mapping[str, Any], display: Progress) -> None:
    """Refuse another text or tokenizer; log differences that change the last bits of the result.

    Raises:
        UserError: The text or the tokenizer is not the one that the run began with.
    """
    changed = [key for key in ("tokenizer_sha256", "data_digest") if str(checkpoint.state.get(key)) != identity[key]]
    if changed:
        raise _other_text(run, checkpoint, identity, changed[0])
    for key in ("device", "precision", "threads", "ranks", "kernels"):
        was = checkpoint.state.get(key, {"ranks": 1, "kernels": "torch"}.get(key))
        note_change(display, key, was, identity[key])


def _other_text(run: Run, checkpoint: Checkpoint, identity: Mapping[str, Any], key: str) -> UserError:
    """Make the error for a text or a tokenizer file that is not the one of the checkpoint."""
    data, tokenizer = checkpoint.config.data, checkpoint.config.tokenizer
    if key == "tokenizer_sha256" and tokenizer.is_file:
        kind, name = "tokenizer", tokenizer.kind
    else:  # a tokenizer that is no file is made from the text
        kind = "text"
        name = ", ".join(data.paths)
        name += "" if data.augment == AugmentConfig() else ", with the tables of data.augment,"
    before, now = str(checkpoint.state.get(key)), str(identity[key])
    return UserError(
        f"{name} is not the {kind} that {run.path} began with: its digest is {now[:12]}, expected {before[:12]}. "
        f"Put the old {kind} back, then resume: {run.resume_command}; or begin a new run under another --name"
    )


def note_change(display: Progress, key: str, was: object, now: object) -> None:
    """Log a value that changed since the run began."""
    if was != now:
        display.log(f"note: {key} was {was} and is {now}: results differ in the last bits")


def refuse_other_data(mine: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    """Compare the text and the tokenizer of this rank with those of the first one.

    Raises:
        UserError: the text or the tokenizer differs.
    """
    for key in ("data_digest", "tokenizer_sha256"):
        if mine[key] != first[key]:
            raise UserError(
                f"this rank's text or tokenizer is not that of the first rank ({key} {mine[key][:12]}, there "
                f"{first[key][:12]}); give all machines the same files, or a folder that they share"
            )
