"""Windows of a token stream, as arrays to train on.

B windows of a batch, T tokens of a window.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .cache import Stream
from .order import mix, permuted, shuffled

Scalar = TypeVar("Scalar", bound=np.generic)


class Batch(NamedTuple):
    """`targets` are `ids` one token on; where `loss_mask` is False a target is not scored."""

    ids: NDArray[np.int64]  # (B, T)
    targets: NDArray[np.int64]  # (B, T)
    loss_mask: NDArray[np.bool_]  # (B, T)


class Row(NamedTuple):
    """One window of a batch."""

    ids: NDArray[np.int64]  # (T,)
    targets: NDArray[np.int64]  # (T,)
    loss_mask: NDArray[np.bool_]  # (T,)


class Windows(Protocol):
    """An endless, numbered series of windows of one source."""

    def row(self, number: int, length: int) -> Row:
        """Window `number` of the series."""
        ...

    def count(self, epochs: int, length: int) -> int:
        """How many windows of `length` tokens the first `epochs` epochs have."""
        ...


class StreamWindows:
    """Windows of the stream from end to end ("stream").

    In each epoch the stream, closed to a ring at its first and last end-of-text token, is cut into non-overlapping
    windows from a random place on, and these come in a random order. What is left over, less than one window, is
    another part in each epoch.
    """

    def __init__(self, stream: Stream, key: int) -> None:
        self._stream = stream
        self._key = key
        self.ring = len(stream.tokens) - 1  # the last end-of-text token is the first

    def windows_per_epoch(self, length: int) -> int:
        """How many windows of `length` tokens an epoch has; 0 when the stream is too short for one."""
        return self.ring // length

    def count(self, epochs: int, length: int) -> int:
        """How many windows of `length` tokens the first `epochs` epochs have."""
        return epochs * self.windows_per_epoch(length)

    def row(self, number: int, length: int) -> Row:
        """Window `number`; raises ZeroDivisionError when the stream is shorter than a window."""
        epoch, place = divmod(number, self.windows_per_epoch(length))
        offset = mix(self._key, epoch, 1) % self.ring
        window = permuted(place, self.windows_per_epoch(length), mix(self._key, epoch, 2))
        start = (offset + window * length) % self.ring
        tokens = self._take(self._stream.tokens, start, length + 1).astype(np.int64)
        mask = self._stream.mask
        scored = np.ones(length, dtype=bool) if mask is None else self._take(mask, start + 1, length)
        return Row(tokens[:-1], tokens[1:], scored)

    def _take(self, array: NDArray[Scalar], start: int, count: int) -> NDArray[Scalar]:
        # Token 0 and the last are the same place of the ring; the last is taken for it, whose mask is that of a real
        # target.
        start = (start - 1) % self.ring + 1
        if start + count <= len(array):
            return np.array(array[start : start + count])
        head = array[start:]
        return np.concatenate([head, array[1 : 1 + count - len(head)]])


class DocumentWindows:
    """Windows that hold whole documents ("documents").

    Each epoch the documents come in a new order, fill one window after the other, and what a window has left is padded.
    A document longer than a window is cut into several, each scored from its second token on.
    """

    def __init__(self, stream: Stream, key: int, eos_id: int) -> None:
        self._stream = stream
        self._key = key
        self._eos_id = eos_id
        self._ends: dict[int, list[int]] = {}  # length -> windows up to the end of each epoch seen so far
        self._packed = lru_cache(maxsize=2)(self._pack)

    def row(self, number: int, length: int) -> Row:
        """Window `number`."""
        ends = self._ends.setdefault(length, [])
        while not ends or number >= ends[-1]:
            self.count(len(ends) + 1, length)
        epoch = int(np.searchsorted(ends, number, side="right"))
        pieces = self._packed(epoch, length)[number - (ends[epoch - 1] if epoch else 0)]
        return row_of(self._stream, pieces, length, self._eos_id)

    def count(self, epochs: int, length: int) -> int:
        """How many windows of `length` tokens the first `epochs` epochs have: each epoch is packed to know."""
        ends = self._ends.setdefault(length, [])
        while len(ends) < epochs:
            ends.append((ends[-1] if ends else 0) + len(self._packed(len(ends), length)))
        return ends[epochs - 1]

    def _pack(self, epoch: int, length: int) -> list[list[tuple[int, int]]]:
        """The windows of an epoch, each a list of (start, end) in the stream, together at most length + 1 tokens."""
        starts, ends = self._pieces(length)
        order = shuffled(len(starts), mix(self._key, epoch, 3))
        return list(filled(zip(starts[order].tolist(), ends[order].tolist(), strict=True), length))

    @lru_cache(maxsize=2)  # noqa: B019 - as many as there are sources, and they live as long as the run
    def _pieces(self, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return pieces_of(self._stream, length)


def pieces_of(stream: Stream, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start and end of each piece of at most length + 1 tokens; those of one document share the token at a cut."""
    starts = stream.docs.astype(np.int64)
    ends = np.append(starts[1:], len(stream.tokens))
    counts = np.maximum(1, -(-(ends - starts - 1) // length))
    first = np.repeat(starts, counts)
    within = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = first + within * length
    return first, np.minimum(first + length + 1, np.repeat(ends, counts))


def filled(pieces: Iterable[tuple[int, int]], length: int) -> Iterator[list[tuple[int, int]]]:
    """Pieces (start, end) in the order given, as many to a window of length + 1 tokens as fit."""
    window: list[tuple[int, int]] = []
    room = length + 1
    for start, end in pieces:
        if window and end - start > room:
            yield window
            window, room = [], length + 1
        window.append((start, end))
        room -= end - start
    if window:
        yield window


def row_of(stream: Stream, pieces: list[tuple[int, int]], length: int, eos_id: int) -> Row:
    """The pieces of a window one after the other, and padding; what is not the first token of a piece is scored."""
    tokens = np.concatenate([stream.tokens[a:b] for a, b in pieces]).astype(np.int64)
    mask = np.ones(len(tokens), dtype=bool)
    if stream.mask is not None:
        mask = np.concatenate([stream.mask[a:b] for a, b in pieces])
    # What stands before a piece has nothing to do with it, so its first token is not asked for.
    mask[np.cumsum([0, *(b - a for a, b in pieces[:-1])])] = False
    padding = length + 1 - len(tokens)
    tokens = np.pad(tokens, (0, padding), constant_values=eos_id)
    mask = np.pad(mask, (0, padding), constant_values=False)
    return Row(tokens[:-1], tokens[1:], mask[1:])


def document_rows(stream: Stream, length: int, eos_id: int, max_tokens: int) -> Iterator[Row]:
    """Windows of whole documents in order, packed and scored as in training, up to `max_tokens` from the first on.

    A window that began inside a document, or asked for the first word of one, would ask for what was never taught.
    """
    starts, ends = pieces_of(stream, length)
    for window in filled(zip(starts.tolist(), ends.tolist(), strict=True), length):
        if window[0][0] > max_tokens:  # the first token of the stream is no document's
            return
        yield row_of(stream, window, length, eos_id)


def sequential_rows(stream: Stream, length: int, eos_id: int, max_tokens: int) -> Iterator[Row]:
    """Non-overlapping windows from the first token to the last, every target once; the last window is padded."""
    last = min(len(stream.tokens) - 1, max_tokens)
    for start in range(0, last, length):
        count = min(length, last - start)
        tokens = stream.tokens[start : start + count + 1].astype(np.int64)
        mask = (
            np.ones(count, dtype=bool) if stream.mask is None else np.array(stream.mask[start + 1 : start + count + 1])
        )
        padding = length - count
        yield Row(
            np.pad(tokens[:-1], (0, padding), constant_values=eos_id),
            np.pad(tokens[1:], (0, padding), constant_values=eos_id),
            np.pad(mask, (0, padding), constant_values=False),
        )


def stack(rows: list[Row]) -> Batch:
    """Rows (T,) to a batch (B, T)."""
    ids, targets, masks = zip(*rows, strict=True)
    return Batch(np.stack(ids), np.stack(targets), np.stack(masks))
