"""Several sequence lengths in one run: short ones teach many beginnings, long ones long memory."""

from __future__ import annotations

from typing import NamedTuple

from .config import RunConfig
from .data.order import Mixture


class Shape(NamedTuple):
    """What one step reads: B sequences of T tokens, and how many steps of that length came before."""

    batch_size: int
    length: int
    place: int


class Lengths:
    """Deals steps to the sequence lengths of a run, each in its turn, at a constant number of tokens a step.

    Each length reads the text in a series of windows of its own. Which step has which length is a function of its
    number, so a resumed run needs no state.
    """

    def __init__(self, config: RunConfig) -> None:
        self.lengths = config.trainer.sequence_lengths or (config.sequence_length,)
        self.tokens = config.trainer.batch_size * config.sequence_length
        self._turns = Mixture([1 / len(self.lengths)] * len(self.lengths))

    def shape(self, step: int) -> Shape:
        """The shape of step `step` (0, 1, ...)."""
        which, place = self._turns.deal(step)
        length = self.lengths[which]
        return Shape(self.tokens // length, length, place)
