"""Sources one after the other, each for a number of epochs."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

from .windows.batches import Windows


class Stages:
    """Deals numbered windows to sources in turn: a function of number and length, so a resumed run needs no state.

    `epochs` is how often each source is read before the next begins; None, for the last, is without end.
    """

    def __init__(self, windows: Sequence[Windows], epochs: Sequence[int | None]) -> None:
        self._windows, self._epochs = windows, epochs

    @lru_cache(maxsize=8)  # noqa: B019 - one for each length of a run, kept as long as the run
    def ends(self, length: int) -> list[int]:
        """Count the windows of `length` tokens up to the end of each stage that has one."""
        counts = [
            windows.count(epochs, length)
            for windows, epochs in zip(self._windows, self._epochs, strict=True)
            if epochs is not None
        ]
        return list(accumulate(counts))

    def total(self, length: int) -> int | None:
        """Count the windows until every source has had its epochs; None where the last is endless."""
        return None if self._epochs[-1] is None else self.ends(length)[-1]

    def around(self, number: int, length: int) -> tuple[int, int | None]:
        """Return the first window of the stage of window `number`, and of the next stage (None in the last)."""
        stage, place = self.deal(number, length)
        return number - place, self.ends(length)[stage] if stage < len(self._windows) - 1 else None

    def deal(self, number: int, length: int) -> tuple[int, int]:
        """Return the source of window `number`, and the count of windows that this source had before it."""
        ends = self.ends(length)[: len(self._windows) - 1]
        stage = bisect_right(ends, number)
        return stage, number - (ends[stage - 1] if stage else 0)
