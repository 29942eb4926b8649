"""Windows of a token stream, as arrays to train on.

B windows of a batch, T tokens of a window.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..cache import Stream
from .order import mix, permuted, shuffled

Scalar = TypeVar("Scalar", bound=np.generic)


class Batch(NamedTuple):
    """Windows to train on: `targets` are `ids` moved by one token."""

    ids: NDArray[np.int64]  # (B, T)
    targets: NDArray[np.int64]  # (B, T)
    loss_mask: NDArray[np.bool_]  # (B, T)
    """False where a target is not scored."""


class Row(NamedTuple):
    """One window of a batch."""

    ids: NDArray[np.int64]  # (T,)
    targets: NDArray[np.int64]  # (T,)
    loss_mask: NDArray[np.bool_]  # (T,)


class Places(NamedTuple):
    """Where the tokens of a batch are in the training text."""

    source: NDArray[np.int64]  # (B,): number of the source
    place: NDArray[np.int64]  # (B, T): number of the token in its stream, -1 for padding


class Windows(Protocol):
    """Endless, numbered windows of one source."""

    def row(self, number: int, length: int) -> Row:
        """Return window `number`."""
        ...

    def count(self, epochs: int, length: int) -> int:
        """Count the windows of `length` tokens in the first `epochs` epochs."""
        ...


class StreamWindows:
    """Windows of the stream from end to end ("stream").

    In each epoch the stream, closed to a ring at its first and last end-of-text token, is cut into non-overlapping
    windows beginning at a random place, and these come in a random order. The rest, less than one window, is another
    part of the text in each epoch.

    With `lead`, the token of a task, each window begins with it, in place of the token before its first target.
    """

    def __init__(self, stream: Stream, key: int, lead: int | None = None) -> None:
        self._stream = stream
        self._key = key
        self._lead = lead
        self.ring = len(stream.tokens) - 1  # the last end-of-text token is the first

    def windows_per_epoch(self, length: int) -> int:
        """Count the windows of `length` tokens in an epoch; 0 when the stream is too short for one."""
        return self.ring // length

    def count(self, epochs: int, length: int) -> int:
        """Count the windows of `length` tokens in the first `epochs` epochs."""
        return epochs * self.windows_per_epoch(length)

    def row(self, number: int, length: int) -> Row:
        """Return window `number`.

        Raises:
            ZeroDivisionError: the stream is shorter than a window.
        """
        start = self._start(number, length)
        tokens = self._take(self._stream.tokens, start, length + 1).astype(np.int64)
        mask = self._stream.mask
        scored = np.ones(length, dtype=bool) if mask is None else self._take(mask, start + 1, length)
        return Row(led(tokens, self._lead)[:-1], tokens[1:], scored)

    def places(self, number: int, length: int) -> NDArray[np.int64]:
        """Return where each token of window `number` is in the stream, (length,)."""
        return (self._start(number, length) - 1 + np.arange(length)) % self.ring + 1

    def _start(self, number: int, length: int) -> int:
        epoch, place = divmod(number, self.windows_per_epoch(length))
        offset = mix(self._key, epoch, 1) % self.ring
        window = permuted(place, self.windows_per_epoch(length), mix(self._key, epoch, 2))
        return (offset + window * length) % self.ring

    def _take(self, array: NDArray[Scalar], start: int, count: int) -> NDArray[Scalar]:
        # Token 0 and the last are one place of the ring; the last is read, because its mask is that of a real target.
        start = (start - 1) % self.ring + 1
        if start + count <= len(array):
            return np.array(array[start : start + count])
        head = array[start:]
        return np.concatenate([head, array[1 : 1 + count - len(head)]])


class DocumentWindows:
    """Windows that hold whole documents ("documents").

    Each epoch the documents come in a new order and fill one window after the other; the rest of a window is padded.
    A document longer than a window is cut into several, each scored from its second token on. With `lead`, the token of
    a task, each of them begins with it.
    """

    def __init__(self, stream: Stream, key: int, eos_id: int, lead: int | None = None) -> None:
        self._stream = stream
        self._key = key
        self._eos_id = eos_id
        self._lead = lead
        self._ends: dict[int, list[int]] = {}  # length -> windows up to the end of each epoch seen so far
        self._packed = lru_cache(maxsize=2)(self._pack)

    def row(self, number: int, length: int) -> Row:
        """Return window `number`."""
        return row_of(self._stream, self._pieces_in(number, length), length, self._eos_id, self._lead)

    def places(self, number: int, length: int) -> NDArray[np.int64]:
        """Return where each token of window `number` is in the stream, (length,); -1 for padding."""
        joined = np.concatenate([np.arange(start, end) for start, end in self._pieces_in(number, length)])
        return np.pad(joined, (0, length + 1 - len(joined)), constant_values=-1)[:-1]

    def _pieces_in(self, number: int, length: int) -> list[tuple[int, int]]:
        ends = self._ends.setdefault(length, [])
        while not ends or number >= ends[-1]:
            self.count(len(ends) + 1, length)
        epoch = int(np.searchsorted(ends, number, side="right"))
        return self._packed(epoch, length)[number - (ends[epoch - 1] if epoch else 0)]

    def count(self, epochs: int, length: int) -> int:
        """Count the windows of `length` tokens in the first `epochs` epochs, for which each of them is packed."""
        ends = self._ends.setdefault(length, [])
        while len(ends) < epochs:
            ends.append((ends[-1] if ends else 0) + len(self._packed(len(ends), length)))
        return ends[epochs - 1]

    def _pack(self, epoch: int, length: int) -> list[list[tuple[int, int]]]:
        """Pack an epoch into windows, each a list of (start, end) in the stream, together at most length + 1 tokens."""
        starts, ends = self._pieces(length)
        order = shuffled(len(starts), mix(self._key, epoch, 3))
        return list(filled(zip(starts[order].tolist(), ends[order].tolist(), strict=True), length))

    @lru_cache(maxsize=2)  # noqa: B019 - one for each source, kept as long as the run
    def _pieces(self, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return pieces_of(self._stream, length)


def pieces_of(stream: Stream, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut documents into pieces (start, end) of at most length + 1 tokens; neighbours share the token at a cut."""
    starts = stream.docs.astype(np.int64)
    ends = np.append(starts[1:], len(stream.tokens))
    counts = np.maximum(1, -(-(ends - starts - 1) // length))
    first = np.repeat(starts, counts)
    within = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = first + within * length
    return first, np.minimum(first + length + 1, np.repeat(ends, counts))


def filled(pieces: Iterable[tuple[int, int]], length: int) -> Iterator[list[tuple[int, int]]]:
    """Fill windows of length + 1 tokens with pieces (start, end), in the order given."""
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


def led(tokens: NDArray[np.int64], lead: int | None) -> NDArray[np.int64]:
    """Let tokens (T + 1,) begin with `lead`, in place of the first, unless it is None or a text of its own follows."""
    if lead is None or tokens[1] == lead:
        return tokens
    return np.concatenate([[lead], tokens[1:]])


def row_of(stream: Stream, pieces: list[tuple[int, int]], length: int, eos_id: int, lead: int | None = None) -> Row:
    """Join the pieces of a window and pad them; all but the first token of a piece are scored.

    With `lead`, the token of a task, each piece begins with it.
    """
    tokens = np.concatenate([stream.tokens[a:b] for a, b in pieces]).astype(np.int64)
    mask = np.ones(len(tokens), dtype=bool)
    if stream.mask is not None:
        mask = np.concatenate([stream.mask[a:b] for a, b in pieces])
    # The first token of a piece cannot be predicted from the piece before, so it is not scored.
    starts = np.cumsum([0, *(b - a for a, b in pieces[:-1])])
    mask[starts] = False
    if lead is not None:  # a document begins with it; it is missing where a document was cut
        tokens[[start for start in starts if lead not in tokens[start : start + 2]]] = lead
    padding = length + 1 - len(tokens)
    tokens = np.pad(tokens, (0, padding), constant_values=eos_id)
    mask = np.pad(mask, (0, padding), constant_values=False)
    return Row(tokens[:-1], tokens[1:], mask[1:])


def document_rows(stream: Stream, length: int, eos_id: int, max_tokens: int, lead: int | None = None) -> Iterator[Row]:
    """Return windows of whole documents in order, packed and scored as in training, from the first `max_tokens` tokens.

    A window that began inside a document, or scored the first word of one, would score what was never taught.
    """
    starts, ends = pieces_of(stream, length)
    for window in filled(zip(starts.tolist(), ends.tolist(), strict=True), length):
        if window[0][0] > max_tokens:  # the first token of the stream belongs to no document
            return
        yield row_of(stream, window, length, eos_id, lead)


def sequential_rows(
    stream: Stream, length: int, eos_id: int, max_tokens: int, lead: int | None = None
) -> Iterator[Row]:
    """Return windows from the first token to the last, without overlap; the last window is padded."""
    last = min(len(stream.tokens) - 1, max_tokens)
    for start in range(0, last, length):
        count = min(length, last - start)
        tokens = led(stream.tokens[start : start + count + 1].astype(np.int64), lead)
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
    """Stack rows (T,) to a batch (B, T)."""
    ids, targets, masks = zip(*rows, strict=True)
    return Batch(np.stack(ids), np.stack(targets), np.stack(masks))
