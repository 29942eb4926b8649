"""Arrays that are computed when they are read, so that a model larger than memory passes through in pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
PIECE = 2**20
"""Bytes of a piece: large against the cost of a call of numpy, small enough for a cache of the processor."""
REMEMBERED = 2**26
"""Most bytes of a whole array that is kept for its next reader."""


class LazyArray:
    """An array of known shape and dtype whose rows (its first axis) are computed when they are read.

    Transposing, reshaping and indexing read nothing. Where numpy gets one, it reads the whole array.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: npt.DTypeLike,
        read: Callable[[int, int], Array],
        pieces: Callable[[], Iterator[Array]] | None = None,
    ) -> None:
        """Describe an array.

        Args:
            shape: Its shape.
            dtype: Its dtype.
            read: Returns rows begin to end.
            pieces: Yields the content in order (C), in arrays of any shape; None reads rows.
        """
        self.shape = tuple(int(size) for size in shape)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self._read, self._pieces = read, pieces
        self._stored: tuple[Array, Callable[[Array], Array]] | None = None
        self._transposed: LazyArray | None = None

    @classmethod
    def of(cls, stored: Array, widen: Callable[[Array], Array], dtype: npt.DTypeLike = np.float32) -> LazyArray:
        """Return an array that is `stored`, with each element changed by `widen` to `dtype`."""

        def read(begin: int, end: int) -> Array:
            return widen(stored[begin:end] if stored.ndim else stored.reshape(1))

        lazy = cls(stored.shape, dtype, read)
        lazy._stored = (stored, widen)
        return lazy

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, begin: int, end: int) -> Array:
        """Compute rows begin to end, (end - begin, ...)."""
        return self._read(begin, end)

    def pieces(self) -> Iterator[Array]:
        """Yield the content in order (C), in contiguous arrays of about PIECE bytes."""
        if self._pieces is not None:
            yield from self._pieces()
            return
        if not self.ndim or not self.size:
            yield self.whole()
            return
        for at in steps(self.shape, self.dtype):
            yield np.ascontiguousarray(self._read(at.start, at.stop))

    def whole(self) -> Array:
        """Compute the whole array."""
        last = _newest.get(id(self))
        if last is not None and last[0] is self:
            return last[1]
        if self.ndim and self.size:
            array, at = np.empty(self.size, self.dtype), 0
            for piece in self.pieces():
                array[at : at + piece.size] = piece.reshape(-1)
                at += piece.size
            array = array.reshape(self.shape)
        else:
            array = np.asarray(self._read(0, 1), self.dtype).reshape(self.shape)
        _newest.clear()
        if array.nbytes <= REMEMBERED:
            _newest[id(self)] = (self, array)
        return array

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        return np.array(self.whole(), dtype=dtype, copy=copy)

    def __getitem__(self, at: int | slice) -> Any:
        """Return row `at` without reading it, or read a slice of rows."""
        if isinstance(at, slice):
            begin, end, step = at.indices(len(self))
            assert step == 1, "only consecutive rows are read"
            return self._read(begin, max(begin, end))
        if self._stored is not None:
            stored, widen = self._stored
            return LazyArray.of(stored[at], widen, self.dtype)
        return self._part(self.shape[1:], lambda: self._read(at, at + 1)[0])

    def _part(self, shape: Sequence[int], compute: Callable[[], Array]) -> LazyArray:
        """Return an array of the same dtype that `compute` returns as a whole."""

        def pieces() -> Iterator[Array]:
            array = compute()
            for at in steps(array.shape, array.dtype):
                yield np.ascontiguousarray(array[at])

        return LazyArray(shape, self.dtype, lambda begin, end: compute()[begin:end], pieces)

    @property
    def T(self) -> LazyArray:  # noqa: N802  # as numpy names it
        """The array with its axes reversed."""
        return self.transpose(*reversed(range(self.ndim)))

    def swapaxes(self, one: int, other: int) -> LazyArray:
        """Return the array with two axes exchanged."""
        axes = list(range(self.ndim))
        axes[one], axes[other] = axes[other], axes[one]
        return self.transpose(*axes)

    def transpose(self, *axes: int) -> LazyArray:
        """Return the array with its axes in this order."""
        if self._stored is not None:
            stored, widen = self._stored
            return LazyArray.of(stored.transpose(axes), widen, self.dtype)
        if self._transposed is not None and axes == (1, 0):
            return self._transposed
        shape = tuple(self.shape[axis] for axis in axes)
        if axes[:1] == (0,):
            return self.map(lambda rows: rows.transpose(axes), shape[1:])
        turned = self._part(shape, lambda: self.whole().transpose(axes))
        if axes == (1, 0):
            turned._transposed = self
        return turned

    def reshape(self, *shape: int) -> LazyArray:
        """Return the same elements in another shape; one size may be -1."""
        known = math.prod(size for size in shape if size != -1)
        shape = tuple(self.size // known if size == -1 else size for size in shape)
        if self._stored is not None and self._stored[0].flags.c_contiguous:
            stored, widen = self._stored
            return LazyArray.of(stored.reshape(shape), widen, self.dtype)
        return LazyArray(shape, self.dtype, lambda begin, end: self.whole().reshape(shape)[begin:end], self.pieces)

    def astype(self, dtype: npt.DTypeLike) -> LazyArray:
        """Return the array in another dtype."""
        return self.map(lambda rows: rows.astype(dtype), dtype=dtype)

    def map(
        self, change: Callable[[Array], Array], shape: Sequence[int] | None = None, dtype: npt.DTypeLike | None = None
    ) -> LazyArray:
        """Return an array whose rows are those of this one, changed.

        Args:
            change: Changes consecutive rows, each independently of the others.
            shape: Shape of a changed row; None is that of a row here.
            dtype: The dtype of a changed row; None is the dtype here.
        """
        return self.map_at(lambda rows, _: change(rows), shape, dtype)

    def map_at(
        self,
        change: Callable[[Array, slice], Array],
        shape: Sequence[int] | None = None,
        dtype: npt.DTypeLike | None = None,
    ) -> LazyArray:
        """Return an array like that of `map`, where `change` also gets the numbers of the rows."""
        return LazyArray(
            (*self.shape[:1], *(self.shape[1:] if shape is None else shape)),
            self.dtype if dtype is None else dtype,
            lambda begin, end: change(self._read(begin, end), slice(begin, end)),
        )


def steps(shape: Sequence[int], dtype: npt.DTypeLike) -> Iterator[slice]:
    """Yield the rows of an array in steps of about PIECE bytes."""
    row = max(1, math.prod(shape[1:]) * np.dtype(dtype).itemsize)
    step = max(1, PIECE // row)
    for begin in range(0, shape[0], step):
        yield slice(begin, min(begin + step, shape[0]))


_newest: dict[int, tuple[LazyArray, Array]] = {}
"""The array that was read whole last, as far as it is small: several parts of a matrix are often read in turn."""


def concatenate(arrays: Sequence[LazyArray]) -> LazyArray:
    """Return arrays one after the other along their first axis."""
    starts = np.cumsum([0, *map(len, arrays)]).tolist()

    def read(begin: int, end: int) -> Array:
        parts = [
            array[max(begin - start, 0) : max(min(end - start, len(array)), 0)]
            for start, array in zip(starts, arrays, strict=False)
        ]
        return np.concatenate([part for part in parts if len(part)])

    return LazyArray((starts[-1], *arrays[0].shape[1:]), arrays[0].dtype, read)
