"""Sequences that are computed together: slots that they join and leave between passes."""

from collections.abc import Sequence as Ids

import numpy as np

from ...contract.errors import UserError
from ..dial import Dial, Thresholds, resolve
from .binding import Passes
from .graph import Graph
from .memory.budget import check_fits, slot_bytes
from .memory.kv_cache import CHUNK, ROUND_CAPACITY, Cache
from .memory.states import States
from .sequence import Sequence
from .step import Step, Work
from .usage.routes import Bools, between, joined

REPEATED_TOKENS = 128
"""Most tokens that are computed again beside new ones; more are computed before, in passes that end at its multiples.

A prompt of a graph that computes each sequence alone begins its passes there too, so they have the same bits.
"""


class Batch:
    """Slots for sequences, with one cache or state per layer.

    The result of a sequence does not depend on the others. A graph that mixes sequences computes all of them in one
    pass and reads each weight once; any other computes one sequence after another, each in a cache of its own.

    Args:
        graph: The graph that computes.
        slots: Most sequences at a time, at least 1.
        capacity: Most tokens of a sequence; None takes the model's context.

    Raises:
        UserError: The capacity exceeds the model's context, or the caches do not fit the free memory.
    """

    def __init__(self, graph: Graph, slots: int = 1, capacity: int | None = None) -> None:
        if slots < 1:
            raise ValueError(f"found {slots} slots, expected at least 1")
        self.graph = graph
        self.slots = slots
        self._vocab_size = graph.manifest.model.vocab_size
        self.capacity = self._rounded(capacity, graph.manifest.model.context_length)
        if graph.device == "cpu":
            check_fits(slot_bytes(graph.manifest.model, self.capacity, graph.kv, slots), slots, self.capacity)
        self._sequences: list[Sequence | None] = [None] * slots
        # A graph that mixes sequences has one cache for all of them, else each has its own, made when it joins.
        self._passes: list[Passes | None] = [None] * slots
        if graph.mixes_sequences:
            self._passes = [self._bound(self.capacity, slots)] * slots

    @property
    def free(self) -> int:
        """Number of free slots."""
        return self._sequences.count(None)

    @property
    def sequences(self) -> list[Sequence]:
        """The sequences that hold a slot."""
        return [one for one in self._sequences if one is not None]

    def join(self, thresholds: Thresholds | None = None, capacity: int | None = None) -> Sequence:
        """Begin a sequence in a free slot.

        Args:
            thresholds: Its thresholds; None takes those of training.
            capacity: Most tokens of it; None takes that of the batch. A graph that computes each sequence alone passes
                over all cells that it allocates, so less is faster there.

        Raises:
            UserError: No slot is free, or the capacity exceeds that of the batch.
        """
        if None not in self._sequences:
            raise UserError(f"found {self.slots} sequences, all slots are taken; wait until one leaves")
        room = self._rounded(capacity, self.capacity)
        place = self._sequences.index(None)
        passes = self._passes[place]
        if passes is None or (passes.cache.capacity != room and not self.graph.mixes_sequences):
            passes = self._passes[place] = self._bound(room, 1)
        slot = place if self.graph.mixes_sequences else 0
        passes.cache.begin(slot)
        passes.states.begin(slot)
        thresholds = thresholds or resolve(self.graph.manifest, Dial())
        sequence = Sequence(self, place, passes.cache, passes.states, slot, thresholds)
        self._sequences[place] = sequence
        return sequence

    def fork(self, sequence: Sequence, position: int | None = None, capacity: int | None = None) -> Sequence:
        """Copy a sequence into a free slot: its tokens, cells, states and thresholds. It stays as it is.

        Args:
            sequence: The sequence to copy.
            position: How many of its tokens to copy; None takes all.
            capacity: As in `join`; None takes that of `sequence`.

        Raises:
            UserError: No slot is free, or the copy does not fit the capacity.
            ValueError: The sequence has no such position, or its rings no longer hold what is needed there.
        """
        count = len(sequence.ids) if position is None else position
        if not (0 <= count <= len(sequence.ids) and sequence.can_rewind(count)):
            raise ValueError(f"found position {count}, to which this sequence cannot go back; begin a new one")
        room = sequence.capacity if capacity is None else capacity
        if count > room:
            raise UserError(f"found {count} tokens to copy, expected at most {room}; give more capacity")
        copy = self.join(sequence.thresholds, room)
        copy.copy_from(sequence, count)
        return copy

    def follow(self, sequence: Sequence, other: Sequence) -> Sequence:
        """Make `sequence` a copy of `other`, and copy only the cells after the tokens that both begin with.

        Args:
            sequence: A sequence of equal capacity; if its thresholds are those of `other`, then since its beginning.
                Its slot belongs to the one that is returned.
            other: The sequence to copy. It stays as it is.
        """
        self._require(sequence)
        self._require(other)
        if not np.array_equal(sequence.limits, other.limits):
            sequence.rewind(0)
            sequence.thresholds = other.thresholds
        pairs = enumerate(zip(sequence.ids, other.ids, strict=False))
        equal = next((place for place, (one, two) in pairs if one != two), min(len(sequence.ids), len(other.ids)))
        sequence.copy_from(other, len(other.ids), equal)
        return sequence

    def resume(self, sequence: Sequence, position: int, capacity: int | None = None) -> Sequence:
        """Go back to `position` and continue from there in the same slot, with room for `capacity` tokens.

        Args:
            sequence: A sequence that `can_rewind` to `position`. Its slot belongs to the one that is returned.
            position: How many of its tokens to keep.
            capacity: As in `join`; None takes that of `sequence`.
        """
        room = sequence.capacity if capacity is None else self._rounded(capacity, self.capacity)
        if self.graph.mixes_sequences or room == sequence.capacity:
            sequence.rewind(position)
            return sequence
        self.leave(sequence)
        larger = self.join(sequence.thresholds, room)
        larger.copy_from(sequence, position)  # its cells are as they were: the slot has a new cache
        return larger

    def leave(self, sequence: Sequence, *, clear: bool = False) -> None:
        """Free the slot of a sequence; the others notice nothing.

        Args:
            sequence: A sequence of this batch. It cannot be computed any more.
            clear: Overwrite its cells and states, which hold numbers that are not finite.
        """
        self._require(sequence)
        if clear:
            sequence.cache.clear(sequence.slot)
            sequence.states.begin(sequence.slot)
        self._sequences[sequence.place] = None

    def run(self, work: Ids[Work]) -> list[Step]:
        """Compute the tokens of `work`, each sequence at most once; return a step for each, in the same order.

        All of it is computed or, if an error is raised, none.

        Raises:
            UserError: An item has no ids, an id outside the vocabulary, or more ids than there is room for.
        """
        marks = [self._check(*one) for one in work]
        if len(work) > 1 and len({one.sequence.place for one in work}) < len(work):
            raise ValueError("found a sequence twice in one pass, expected each at most once")
        owing = any(one.sequence.owed for one in work)
        try:
            whole = [self._with_owed(one) if one.sequence.owed else one for one in work] if owing else work
            if len(work) == 1 or self.graph.mixes_sequences:
                steps = self._together(whole)
            else:
                steps = [step for one in whole for step in self._together([one])]
        except BaseException:
            for (sequence, *_), mark in zip(work, marks, strict=True):
                if sequence.can_rewind(mark):
                    sequence.recover(mark)
                else:
                    self.leave(sequence)
            raise
        if not owing:
            return steps
        return [
            step if one is own else _without_first(step, len(one.ids) - len(own.ids), own.sequence.exits_open)
            for step, one, own in zip(steps, whole, work, strict=True)
        ]

    def _with_owed(self, work: Work) -> Work:
        """Add the tokens that a sequence owes to its work; compute before those that are many or had other thresholds.

        They are computed again at the thresholds that they had.
        """
        sequence, ids, num_logits = work
        while sequence.owed:
            begin = sequence.computed
            limits, end = sequence.stretch(begin)
            if end == len(sequence.ids) and end - begin < REPEATED_TOKENS and np.array_equal(limits, sequence.limits):
                break
            end = min(end, (begin // REPEATED_TOKENS + 1) * REPEATED_TOKENS)
            with sequence.computing_at(limits):
                self._together([Work(sequence, sequence.ids[begin:end], 0)])
        return Work(sequence, [*sequence.ids[sequence.computed :], *ids], num_logits)

    def _together(self, work: Ids[Work]) -> list[Step]:
        """Compute `work` in one pass, or in several where a ring is too small for one."""
        for sequence, ids, _ in work:
            begin, count = sequence.computed, len(ids)
            if count > 1 and sequence.cache.longest_pass(begin, begin + count) < count:
                return self._in_chunks(work)
        return self._one_pass(work)

    def _in_chunks(self, work: Ids[Work]) -> list[Step]:
        parts: list[list[Step]] = [[] for _ in work]
        for begin in range(0, max(len(one.ids) for one in work), CHUNK):
            chunks = [(index, one) for index, one in enumerate(work) if begin < len(one.ids)]
            now = []
            for _, (sequence, ids, num_logits) in chunks:
                part = ids[begin : begin + CHUNK]
                wanted = begin + len(part) - (len(ids) - num_logits)  # tokens so far whose logits are returned
                now.append(Work(sequence, part, min(max(wanted, 0), len(part))))
            for (index, _), step in zip(chunks, self._one_pass(now), strict=True):
                parts[index].append(step)
        return [steps[0] if len(steps) == 1 else _joined(steps) for steps in parts]

    def _one_pass(self, work: Ids[Work]) -> list[Step]:
        rows = logits = 0
        for _, ids, num_logits in work:
            rows += len(ids)
            logits += num_logits
        passes = self._passes[work[0][0].place]
        assert passes is not None
        return passes.of(rows, logits or 1).run(work)  # the graph gives the logits of at least one token

    def _check(self, sequence: Sequence, ids: Ids[int], num_logits: int) -> int:
        """Refuse work that cannot be done; return the position of its sequence."""
        self._require(sequence)
        count, position = len(ids), len(sequence.ids)
        if not count:
            raise UserError("found no tokens to compute, expected at least one; give a text")
        if min(ids) < 0 or max(ids) >= self._vocab_size:
            wrong = next(i for i in ids if not 0 <= i < self._vocab_size)
            raise UserError(f"found token {wrong}, this model has 0 to {self._vocab_size - 1}")
        if not 0 <= num_logits <= count:
            raise ValueError(f"found num_logits {num_logits}, expected 0 to {count}")
        if position + count > sequence.capacity:
            raise UserError(
                f"found {position + count} tokens, there is room for {sequence.capacity}; "
                "begin a sequence with more capacity"
            )
        return position

    def _require(self, sequence: Sequence) -> None:
        if self._sequences[sequence.place] is not sequence:
            raise RuntimeError("this sequence has left its batch; begin a new one")

    def _bound(self, capacity: int, slots: int) -> Passes:
        graph = self.graph
        cache = Cache(graph.ort, graph.manifest, graph.device, capacity, graph.kv, slots)
        passes = Passes(graph, cache, States(graph.ort, graph.manifest.model, graph.device, slots))
        passes.of(1, 1)  # the pass of every decoded token, so that none of them waits for its binding
        return passes

    def _rounded(self, wanted: int | None, most: int) -> int:
        room = most if wanted is None else wanted
        if not 1 <= room <= most:
            holder = "this model" if most == self.graph.manifest.model.context_length else "this batch"
            raise UserError(f"found {room} tokens, {holder} holds 1 to {most}; shorten the text")
        return min(-(-room // ROUND_CAPACITY) * ROUND_CAPACITY, most)


def _without_first(step: Step, count: int, exits_open: Bools) -> Step:
    """Return the step without its first tokens, whose logits it does not have."""
    routes = between(step.routes, count, step.routes.layers_run.shape[1], exits_open)
    return Step(step.logits, routes, step.meter, None if step.hidden is None else step.hidden[count:])


def _joined(steps: Ids[Step]) -> Step:
    hidden = [one.hidden for one in steps if one.hidden is not None]
    return Step(
        np.concatenate([one.logits for one in steps]),
        joined([one.routes for one in steps]),
        steps[0].meter,
        np.concatenate(hidden) if hidden else None,
    )
