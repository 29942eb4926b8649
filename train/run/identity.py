"""The data and the machine of a run: a resumed run needs the same text, and other differences are logged."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from ...contract.errors import UserError
from ..data import Corpus
from ..model import ModelConfig, native
from ..parallel.world import World
from ..system.progress import Progress
from .checkpoint import Checkpoint
from .differences import refuse
from .folder import Run


def identity_of(
    model: ModelConfig, corpus: Corpus, device: torch.device, precision: str, world: World
) -> dict[str, Any]:
    """Return what every checkpoint records of the data and the machine."""
    in_half = device.type == "cpu" and precision == "bf16"
    in_cpp = in_half and model.ffn.routing != "dense" and native.serves(model.dim)
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
    """Refuse another text or tokenizer; log every difference that changes the last bits of the result."""
    changed = []
    for key, name in (
        ("tokenizer_sha256", "the tokenizer"),
        ("data_digest", "the text, or how it is split and packed"),
    ):
        before = str(checkpoint.state.get(key))
        if before != identity[key]:
            changed.append(f"{name}: digest {before[:12]} -> {identity[key][:12]}")
    refuse(run, changed)
    for key in ("device", "precision", "threads", "ranks", "kernels"):
        was = checkpoint.state.get(key, {"ranks": 1, "kernels": "torch"}.get(key))
        note_change(display, key, was, identity[key])


def note_change(display: Progress, key: str, was: object, now: object) -> None:
    """Log a value that changed since the run began."""
    if was != now:
        display.log(f"note: {key} was {was} and is {now}: results differ in the last bits")


def refuse_other_data(mine: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    """Compare the text and the tokenizer of this rank with those of the first one.

    Raises:
        UserError: they differ.
    """
    for key in ("data_digest", "tokenizer_sha256"):
        if mine[key] != first[key]:
            raise UserError(
                f"this rank's text or tokenizer is not that of the first rank ({key} {mine[key][:12]}, there "
                f"{first[key][:12]}); give all machines the same files, or a folder that they share"
            )
