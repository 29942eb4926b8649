"""Several sequence lengths in one run: short ones teach many beginnings, long ones long memory."""

from __future__ import annotations

from typing import NamedTuple

from .config import RunConfig
from .data.order import Mixture
from .record import Counters


class Shape(NamedTuple):
    """What one step reads: B windows of T tokens."""

    batch_size: int
    length: int
    first: int
    """The number of the first of them in the series of windows of that length."""

    @property
    def last(self) -> int:
        return self.first + self.batch_size - 1


class Lengths:
    """Deals steps to the sequence lengths of a run, each in its turn, at a constant number of tokens a step.

    Each length reads the text in a series of windows of its own; how far is a part of the counters.
    """

    def __init__(self, config: RunConfig) -> None:
        self.lengths = config.trainer.sequence_lengths or (config.sequence_length,)
        self.tokens = config.trainer.batch_size * config.sequence_length
        self._turns = Mixture([1 / len(self.lengths)] * len(self.lengths))

    def shape(self, counters: Counters) -> Shape:
        """The shape of the step to come."""
        which, _ = self._turns.deal(counters.step)
        length = self.lengths[which]
        return Shape(self.tokens // length, length, self._read(counters)[which])

    def advance(self, counters: Counters, shape: Shape) -> None:
        """Notes that the windows of `shape` were read."""
        which, before = self.lengths.index(shape.length), self._read(counters)
        counters.windows = [*before[:which], shape.last + 1, *before[which + 1 :]]

    def _read(self, counters: Counters) -> list[int]:
        """Windows read of each length. A checkpoint from before they were counted was made with batches of one size."""
        if counters.windows:
            return counters.windows
        steps = [0] * len(self.lengths)
        for step in range(min(counters.step, len(steps))):
            which, place = self._turns.deal(counters.step - 1 - step)  # of any so many steps, each length has one
            steps[which] = place + 1
        return [number * (self.tokens // length) for number, length in zip(steps, self.lengths, strict=True)]
