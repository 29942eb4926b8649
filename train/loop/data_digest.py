"""The record of what a run was trained on: a running hash over its batches.

Two runs with the same digest at the same step were given the same tokens, in the same order, the same of them scored:
none repeated, none lost, however often one of the two was stopped or killed on the way.
"""

from __future__ import annotations

import hashlib

import numpy as np

from ..data.batches import Batch


def digest_with(before: str, batch: Batch) -> str:
    """SHA-256 of the digest `before` this batch ("" at the beginning) and the batch: its shape, its ids and targets
    (B, T) as little-endian int64, and which targets are scored.

    A chain and not one long hash, since the state of such a one cannot be written down in a checkpoint.
    """
    chained = hashlib.sha256(f"{before} {batch.ids.shape}".encode())
    for part, kind in zip(batch, ("<i8", "<i8", "?"), strict=True):
        chained.update(np.ascontiguousarray(part, dtype=kind).data)
    return chained.hexdigest()
