"""Reuse of what is in memory: the text whose beginning a prompt shares with a sequence of the batch."""

from collections.abc import Iterable
from typing import NamedTuple

from ..dial.thresholds import Thresholds
from ..execution.sequence import Sequence

ALONE_GRID = 128
"""Where each sequence runs alone, its prompt is computed in passes that begin at multiples of this many tokens.

A portable graph gives the same bits only for the same passes, so they must not depend on what else there is to compute,
nor on where a reused prefix ends.
"""


class Prefix(NamedTuple):
    """The first tokens of a prompt that are in memory."""

    sequence: Sequence | None
    """The sequence that holds them; None where there is none."""
    tokens: int
    """How many of them need not be computed again."""
    shared: int
    """Most first tokens that a sequence has in common with the prompt. More than `tokens` where no copy of the states
    was made there, or a ring has overwritten its cells."""


def longest_prefix(ids: list[int], thresholds: Thresholds, sequences: Iterable[Sequence], grid: int) -> Prefix:
    """Return the sequence that holds the most first tokens of `ids`, computed at the same thresholds.

    The last token is left to be computed, for its logits. A ring limits how far a sequence can go back, and one with
    states goes back to a copy of these.

    Args:
        ids: A prompt.
        thresholds: Those of the prompt.
        sequences: Where to look.
        grid: The number of tokens is a multiple of this.
    """
    best: Sequence | None = None
    most = longest = 0
    limits = thresholds.stacked()
    for sequence in sequences:
        usable = sequence.computed_at(limits) if len(sequence.ids) > most else 0
        if usable <= most:
            continue
        common = shared(ids, sequence.ids, min(usable, len(ids) - 1)) // grid * grid
        longest = max(longest, common)
        count = sequence.nearest(common, grid) if common > most else 0
        if count > most:
            best, most = sequence, count
    return Prefix(best, most, longest)


def shared(ids: list[int], other: list[int], most: int) -> int:
    """Return how many first tokens two texts share, at most `most`."""
    low, high = 0, min(most, len(other))
    while low < high:  # by halves: comparing lists is fast
        middle = (low + high + 1) // 2
        low, high = (middle, high) if ids[low:middle] == other[low:middle] else (low, middle - 1)
    return low
