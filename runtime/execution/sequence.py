"""One text of a batch: the tokens computed so far, the thresholds in force, and how to go back.

Keys and values are cut to any length. The states of recurrent layers are those of one position, so a sequence copies
them now and then; it goes back to the nearest copy, and the tokens from there on are computed again.

L layers, T tokens.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Ids
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from ..dial.thresholds import Floats, Thresholds
from .memory.checkpoints import Checkpoints
from .memory.kv_cache import Cache
from .memory.states import SPACING, States
from .step import Step, Work
from .usage.routes import Bools, Ints

if TYPE_CHECKING:
    from .batch import Batch


class Sequence:
    """The tokens that one slot of a batch holds; made by `Batch.join` and `Batch.fork`."""

    def __init__(
        self, batch: "Batch", place: int, cache: Cache, states: States, slot: int, thresholds: Thresholds
    ) -> None:
        self.batch = batch
        self.place = place
        """Its place in the batch, 0 to slots - 1."""
        self.cache = cache
        self.states = states
        self.capacity = cache.capacity
        """Tokens that it can hold."""
        self.slot = slot
        """Its slot in `cache` and `states`."""
        self.ids: list[int] = []
        """The tokens computed so far."""
        self.computed = 0
        """How many of them cache and states hold. The others are computed again with those of the next pass."""
        self.recurrent = bool(states.values)
        """Whether it has states, which cannot be cut as keys and values can."""
        self._checkpoints = Checkpoints()
        self._states_hold = True  # whether the states are those after `computed` tokens
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
    def owed(self) -> int:
        """Number of tokens that the next pass computes again."""
        return len(self.ids) - self.computed

    @property
    def lengths(self) -> Ints:
        """Tokens that each layer holds, (L,), of the first `computed`."""
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
        """Return whether `rewind` can go back to `position`: a ring has overwritten its oldest cells.

        A sequence with states always can, since it computes tokens again.
        """
        return self.recurrent or self.cache.holds(self.slot, self._lengths_at(position))

    def nearest(self, position: int, grid: int = 1) -> int:
        """Return how many of the first `position` tokens need not be computed again if it goes back to there.

        Without states that is `position`, or 0 where a ring has overwritten its cells; else it is the position of a
        copy of the states.

        Args:
            position: Number of tokens, at most those it has.
            grid: The result is a multiple of this.
        """
        place = position // grid * grid
        if self.recurrent:
            present = self.computed if self._states_hold and self.computed % grid == 0 else 0
            place = max(self._checkpoints.nearest(place, grid), present if present <= place else 0)
        return place if self.cache.holds(self.slot, self._lengths_at(place)) else 0

    def checkpoint(self) -> None:
        """Copy the states at this position, so that the sequence can go back to it. Without states there is no need.

        A bounded number of copies is kept (`MOST_COPIES`); every `SPACING` tokens one is made anyway.
        """
        if self.recurrent and not self.owed:
            self._copy_states(wanted=True)

    def mark(self) -> None:
        """Copy the states before a draft, in place of the copy before the last one."""
        if self.recurrent and not self.owed and self._checkpoints.at(self.computed) is None:
            self._checkpoints.add_draft(self.computed, self.states.copied(self.slot))

    def rewind(self, position: int) -> None:
        """Forget the tokens from `position` on, so that the next one is computed there.

        It is possible at any distance where no layer has a ring or none has overwritten a cell, else by at least
        `CHUNK` tokens from the furthest one that was computed; and always to position 0. With states it is always
        possible; the tokens since the `nearest` copy are `owed`.

        Raises:
            ValueError: There is no such position, or a ring no longer holds what is needed there.
        """
        if not 0 <= position <= len(self.ids):
            raise ValueError(f"found position {position}, expected 0 to {len(self.ids)}")
        if not self.can_rewind(position):
            raise ValueError(
                f"found position {position}, {len(self.ids) - position} tokens back, which a ring no longer holds; "
                "begin a new sequence"
            )
        place = self.nearest(position)
        self.cache.cut(self.slot, self._lengths_at(place))
        if self.recurrent and not (place == self.computed and self._states_hold):
            self._set_states(place, self)
        self._checkpoints.cut(place)
        self.computed, self._states_hold = place, True
        del self.ids[position:]
        self._record_limits()

    def recover(self, position: int) -> None:
        """Go back to a position that it `can_rewind` to after a pass that failed, whose states may be half written."""
        self._states_hold = False
        self.rewind(position)

    def extend(self, ids: Ids[int], layers_run: Bools) -> None:
        """Record tokens that a pass has computed, and the layers (L, T) that each ran."""
        begin, end = self.computed, self.computed + len(ids)
        if self._present is not None:
            self._present[:, begin:end] = layers_run
        self.ids[begin:end] = ids  # those that were computed again are equal
        self.computed = end
        if self.recurrent and begin // SPACING < end // SPACING:
            self._copy_states(wanted=False)

    def stretch(self, begin: int) -> tuple[Floats, int]:
        """Return the thresholds (5, L) at which token `begin` was computed, and up to where they hold."""
        place = max(i for i, (first, _) in enumerate(self._changes) if first <= begin)
        following = self._changes[place + 1 :]
        return self._changes[place][1], following[0][0] if following else len(self.ids)

    @contextmanager
    def computing_at(self, limits: Floats) -> Iterator[None]:
        """Let other thresholds (5, L) be in force for a while, without a record of it: for tokens of before."""
        own = self.limits, self.exits_open
        self.limits, self.exits_open = limits, limits[2] < 1
        try:
            yield
        finally:
            self.limits, self.exits_open = own

    def copy_from(self, other: "Sequence", position: int, equal: int = 0) -> None:
        """Take over the first `position` tokens of another sequence, to which that one `can_rewind`.

        Args:
            other: The sequence to copy.
            position: How many of its tokens to copy.
            equal: The first tokens that both hold, computed in the same way, which are not copied again.
        """
        place = other.nearest(position)
        same = self._lengths_at(min(equal, place, self.computed))
        self.cache.copy(other.cache, other.slot, self.slot, other._lengths_at(place), same)
        if self.recurrent:
            self._set_states(place, other)
            self._checkpoints, self._states_hold = other._checkpoints.up_to(place), True
        self.ids, self.computed = other.ids[:position], place
        self._changes = [change for change in other._changes if change[0] < position]
        self._record_limits()
        if self._present is not None and other._present is not None:
            self._present[:, :position] = other._present[:, :position]

    def _set_states(self, place: int, source: "Sequence") -> None:
        """Set the states to those of `source` after its first `place` tokens, which is the `nearest` of a position."""
        copy = source._checkpoints.at(place)
        if copy is not None:
            self.states.restore(self.slot, copy)
        elif place:
            self.states.restore(self.slot, source.states.copied(source.slot))
        else:
            self.states.begin(self.slot)

    def _copy_states(self, *, wanted: bool) -> None:
        copy = self._checkpoints.at(self.computed)
        copy = self.states.copied(self.slot) if copy is None else copy
        self._checkpoints.add(self.computed, copy, wanted=wanted)

    def _record_limits(self) -> None:
        """Record that the tokens from here on are computed at the present thresholds."""
        while self._changes and self._changes[-1][0] >= len(self.ids):
            self._changes.pop()
        if not self._changes or not np.array_equal(self._changes[-1][1], self.limits):
            self._changes.append((len(self.ids), self.limits))

    def _lengths_at(self, position: int) -> Ints:
        if self._present is None:
            return np.full(len(self.lengths), position)
        lengths: Ints
        if position > self.computed:
            lengths = self.lengths + self._present[:, self.computed : position].sum(axis=1)
        else:
            lengths = self.lengths - self._present[:, position : self.computed].sum(axis=1)
        return lengths
