"""The digest of a run's training data: a running hash over its batches.

Two runs with the same digest at the same step were trained on the same tokens in the same order, with the same tokens
scored: none repeated, none lost, however often one of the two was stopped or killed.
"""

from __future__ import annotations

import hashlib

import numpy as np

from ...data.windows.batches import Batch


def digest_with(before: str, batch: Batch) -> str:
    """Return the digest after one more batch.

    SHA-256 over the digest before it and the batch: its shape, its ids and targets (B, T) as little-endian int64, and
    which targets are scored. It is a chain and not one long hash, whose state could not be stored in a checkpoint.

    Args:
        before: The digest before this batch, "" at the beginning.
        batch: The batch.
    """
    chained = hashlib.sha256(f"{before} {batch.ids.shape}".encode())
    for part, kind in zip(batch, ("<i8", "<i8", "?"), strict=True):
        chained.update(np.ascontiguousarray(part, dtype=kind).data)
    return chained.hexdigest()
