"""Several sequence lengths in one run: short ones train on many beginnings of texts, long ones on long contexts."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from ..config.trainer import TrainerConfig
from ..data.windows.order import Mixture
from ..optim.batch_size import batch_size_at
from ..run.counters import Counters


class Shape(NamedTuple):
    """The shape of one step: B windows of T tokens."""

    batch_size: int
    length: int
    first: int
    """The number of the first window in the series of windows of that length."""
    part: int
    """Sequences computed at once: a larger batch has more parts, not larger ones, so it needs no more memory."""

    @property
    def last(self) -> int:
        """The number of the last window."""
        return self.first + self.batch_size - 1


class Lengths:
    """Assigns each step one of the sequence lengths of a run, in turn or one after the other.

    Shorter sequences come in larger batches, so that a step has as many tokens at any length. Each length reads the
    text in its own series of windows; how far each has come is part of the counters.
    """

    def __init__(self, trainer: TrainerConfig, sequence_length: int) -> None:
        """Set up the lengths.

        Args:
            trainer: The section with the batch and the lengths.
            sequence_length: Tokens of the longest sequence.
        """
        self.trainer = trainer
        self.lengths = trainer.sequence_lengths or (sequence_length,)
        self.tokens = trainer.batch_size * sequence_length
        self._turns = Mixture([1 / len(self.lengths)] * len(self.lengths))

    def shape(self, counters: Counters, done: float) -> Shape:
        """Return the shape of the next step, at progress `done` (0..1) of the run."""
        which = self._which(counters.step, done)
        length, rows = self.lengths[which], self.batch_size(counters, done)
        return Shape(rows * max(self.lengths) // length, length, self._read(counters)[which], self._part(length))

    def batches(self) -> list[tuple[int, int]]:
        """Return (sequences, sequences computed at once) of every batch that the run may have."""
        sizes = [self.trainer.batch_size, *(change.batch_size for change in self.trainer.batch_schedule)]
        longest = max(self.lengths)
        return [(size * longest // length, self._part(length)) for size in sizes for length in self.lengths]

    def _part(self, length: int) -> int:
        return -(-(self.tokens // length) // self.trainer.micro_batches)

    def batch_size(self, counters: Counters, done: float) -> int:
        """Return how many sequences of the longest length the next step has."""
        size = batch_size_at(self.trainer.batch_size, self.trainer.batch_schedule, counters.step, done)
        return size * counters.growth

    def _which(self, step: int, done: float) -> int:
        begins = self.trainer.sequence_lengths_from
        return bisect_right(begins, done) - 1 if begins else self._turns.deal(step)[0]

    def advance(self, counters: Counters, shape: Shape) -> None:
        """Note that the windows of `shape` were read."""
        which, before = self.lengths.index(shape.length), self._read(counters)
        counters.windows = [*before[:which], shape.last + 1, *before[which + 1 :]]

    def read(self, counters: Counters) -> dict[int, int]:
        """Return how many windows were read of each length."""
        return dict(zip(self.lengths, self._read(counters), strict=True))

    def _read(self, counters: Counters) -> list[int]:
        """Return how many windows of each length were read.

        A checkpoint of a version that did not count them was made with batches of one size.
        """
        if counters.windows:
            return counters.windows
        steps = [0] * len(self.lengths)
        for step in range(min(counters.step, len(steps))):
            which, place = self._turns.deal(counters.step - 1 - step)  # of as many steps as lengths, each has one
            steps[which] = place + 1
        return [number * (self.tokens // length) for number, length in zip(steps, self.lengths, strict=True)]
