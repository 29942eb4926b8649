"""Reuse of what is in memory: the text whose beginning a prompt shares with a sequence of the batch."""

from collections.abc import Iterable

from ..dial.thresholds import Thresholds
from ..execution.sequence import Sequence

ALONE_GRID = 128
"""Where each sequence runs alone, its prompt is computed in passes that begin at multiples of this many tokens.

A portable graph gives the same bits only for the same passes, so they must not depend on what else there is to compute,
nor on where a reused prefix ends.
"""


def longest_prefix(
    ids: list[int], thresholds: Thresholds, sequences: Iterable[Sequence], grid: int
) -> tuple[Sequence | None, int]:
    """Return the sequence that holds the most first tokens of `ids`, computed at the same thresholds, and how many.

    The last token is left to be computed, for its logits. A ring limits how far a sequence can go back.

    Args:
        ids: A prompt.
        thresholds: Those of the prompt.
        sequences: Where to look.
        grid: The number of tokens is a multiple of this.
    """
    best: tuple[Sequence | None, int] = (None, 0)
    limits = thresholds.stacked()
    for sequence in sequences:
        usable = sequence.computed_at(limits) if len(sequence.ids) > best[1] else 0
        if usable <= best[1]:
            continue
        common = shared(ids, sequence.ids, min(usable, len(ids) - 1)) // grid * grid
        if common > best[1] and sequence.can_rewind(common):
            best = (sequence, common)
    return best


def shared(ids: list[int], other: list[int], most: int) -> int:
    """Return how many first tokens two texts share, at most `most`."""
    low, high = 0, min(most, len(other))
    while low < high:  # by halves: comparing lists is fast
        middle = (low + high + 1) // 2
        low, high = (middle, high) if ids[low:middle] == other[low:middle] else (low, middle - 1)
    return low
