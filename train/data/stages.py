"""Sources one after the other, each read so many times."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

from .batches import Windows


class Stages:
    """Deals numbered windows to sources in turn: a function of number and length, so a resumed run needs no state.

    `epochs` says how often each source is read before the next begins; the last goes on without end.
    """

    def __init__(self, windows: Sequence[Windows], epochs: Sequence[int | None]) -> None:
        self._windows, self._epochs = windows, epochs

    @lru_cache(maxsize=8)  # noqa: B019 - one for each length of a run, and they live as long as it
    def ends(self, length: int) -> list[int]:
        """How many windows of `length` tokens have come when each stage that has an end is over."""
        counts = [
            windows.count(epochs, length)
            for windows, epochs in zip(self._windows, self._epochs, strict=True)
            if epochs is not None
        ]
        return list(accumulate(counts))

    def total(self, length: int) -> int | None:
        """Windows until every source has had its epochs; None where the last has no number of them."""
        return None if self._epochs[-1] is None else self.ends(length)[-1]

    def around(self, number: int, length: int) -> tuple[int, int | None]:
        """The first window of the stage that window `number` belongs to, and of the next; None in the last stage."""
        stage, place = self.deal(number, length)
        return number - place, self.ends(length)[stage] if stage < len(self._windows) - 1 else None

    def deal(self, number: int, length: int) -> tuple[int, int]:
        """The source of window `number`, and how many windows that source had before it."""
        ends = self.ends(length)[: len(self._windows) - 1]
        stage = bisect_right(ends, number)
        return stage, number - (ends[stage - 1] if stage else 0)
