"""One text of a batch: the tokens computed so far, the thresholds in force, and how to go back.

L layers, T tokens.
"""

from collections.abc import Sequence as Ids
from typing import TYPE_CHECKING

import numpy as np

from ..dial.thresholds import Floats, Thresholds
from .kv_cache import Cache
from .routes import Bools, Ints
from .step import Step, Work

if TYPE_CHECKING:
    from .batch import Batch


class Sequence:
    """The tokens that one slot of a batch holds; made by `Batch.join` and `Batch.fork`."""

    def __init__(self, batch: "Batch", place: int, cache: Cache, slot: int, thresholds: Thresholds) -> None:
        self.batch = batch
        self.place = place
        """Its place in the batch, 0 to slots - 1."""
        self.cache = cache
        self.capacity = cache.capacity
        """Tokens that it can hold."""
        self.slot = slot
        """Its slot in `cache`."""
        self.ids: list[int] = []
        """The tokens computed so far."""
        self._changes: list[tuple[int, Floats]] = []  # (first position, limits), in order of position
        self.thresholds = thresholds
        L = cache.lengths.shape[0]
        # Which layers hold each token. Under `project` all do.
        skips = batch.graph.manifest.model.skipped_kv == "none"
        self._present: Bools | None = np.zeros((L, cache.capacity), np.bool_) if skips else None

    @property
    def position(self) -> int:
        """Number of tokens computed so far."""
        return len(self.ids)

    @property
    def lengths(self) -> Ints:
        """Tokens that each layer holds, (L,)."""
        lengths: Ints = self.cache.lengths[:, self.slot]
        return lengths

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds from the next pass on. They are copied when they are set."""
        return Thresholds(*self.limits.copy())

    @thresholds.setter
    def thresholds(self, thresholds: Thresholds) -> None:
        self.limits = thresholds.stacked()
        """(5, L), in the order of `Thresholds`. A new array whenever they change."""
        self.exits_open = self.limits[2] < 1
        """(L,): whether the exit check of each layer is made."""
        self._record_limits()

    def computed_at(self, limits: Floats) -> int:
        """Return how many of the first tokens were computed at the thresholds `limits` (5, L)."""
        return next((begin for begin, own in self._changes if not np.array_equal(own, limits)), len(self.ids))

    def prefill(self, ids: Ids[int], num_logits: int = 1) -> Step:
        """Compute `ids` after the tokens so far.

        This takes one pass, or several where the cache of a layer with a window is too small for one; the result is the
        same.

        Args:
            ids: Token ids, at least one.
            num_logits: Tokens, from the last backwards, whose logits are returned; 0 to len(ids).

        Raises:
            UserError: There are no ids, an id is outside the vocabulary, or there is too little room.
        """
        return self.batch.run([Work(self, ids, num_logits)])[0]

    def step(self, token: int) -> Step:
        """Compute one token; its logits, (1, V), choose the next one.

        Raises:
            UserError: As in `prefill`.
        """
        return self.batch.run([Work(self, (token,))])[0]

    def can_rewind(self, position: int) -> bool:
        """Return whether `rewind` can go back to `position`: a ring has overwritten its oldest cells."""
        return self.cache.holds(self.slot, self._lengths_at(position))

    def rewind(self, position: int) -> None:
        """Forget the tokens from `position` on, so that the next one is computed there.

        It is possible at any distance where no layer has a ring or none has overwritten a cell, else by at least
        `CHUNK` tokens from the furthest one that was computed; and always to position 0.

        Raises:
            ValueError: There is no such position, or a ring no longer holds what is needed there.
        """
        if not 0 <= position <= len(self.ids):
            raise ValueError(f"found position {position}, expected 0 to {len(self.ids)}")
        lengths = self._lengths_at(position)
        if not self.cache.holds(self.slot, lengths):
            raise ValueError(
                f"found position {position}, {len(self.ids) - position} tokens back, which a ring no longer holds; "
                "begin a new sequence"
            )
        self.cache.cut(self.slot, lengths)
        del self.ids[position:]
        self._record_limits()

    def extend(self, ids: Ids[int], layers_run: Bools) -> None:
        """Record tokens that a pass has computed, and the layers (L, T) that each ran."""
        own = self.ids
        if self._present is not None:
            self._present[:, len(own) : len(own) + len(ids)] = layers_run
        own.extend(ids)

    def copy_from(self, other: "Sequence", position: int, equal: int = 0) -> None:
        """Take over the first `position` tokens of another sequence, to which that one `can_rewind`.

        Args:
            other: The sequence to copy.
            position: How many of its tokens to copy.
            equal: The first tokens that both hold, computed in the same way, which are not copied again.
        """
        self.cache.copy(other.cache, other.slot, self.slot, other._lengths_at(position), self._lengths_at(equal))
        self.ids = other.ids[:position]
        self._changes = [change for change in other._changes if change[0] < position]
        self._record_limits()
        if self._present is not None and other._present is not None:
            self._present[:, :position] = other._present[:, :position]

    def _record_limits(self) -> None:
        """Record that the tokens from here on are computed at the present thresholds."""
        while self._changes and self._changes[-1][0] >= len(self.ids):
            self._changes.pop()
        if not self._changes or not np.array_equal(self._changes[-1][1], self.limits):
            self._changes.append((len(self.ids), self.limits))

    def _lengths_at(self, position: int) -> Ints:
        if self._present is None:
            return np.full(len(self.lengths), position)
        lengths: Ints = self.lengths - self._present[:, position : len(self.ids)].sum(axis=1)
        return lengths
