"""Large arrays of a check, on the disk: the logits of a large vocabulary take half a gigabyte at each thresholds."""

import tempfile
import weakref
from pathlib import Path
from typing import IO

import numpy as np

from ..graph.builder import Array
from ..graph.lazy_array import LazyArray

LARGE = 2**24
"""Bytes from which an array is put on the disk."""


class Scratch:
    """A file without a name, which disappears with the last array in it, and with the process.

    Args:
        folder: The folder whose disk it uses; None is that of temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  # closed with this object
            weakref.finalize(self, self._file.close)
        return self._file

    def keep(self, array: Array | LazyArray) -> Array | LazyArray:
        """Return the array, a large one as one that is read from the disk.

        Raises:
            OSError: The disk is full.
        """
        if isinstance(array, LazyArray) or array.nbytes < LARGE:
            return array
        file = self._opened()
        start = file.seek(0, 2)
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        row = array.nbytes // len(array)
        shape, dtype = array.shape, array.dtype

        def read(begin: int, end: int) -> Array:
            opened = self._opened()  # this object lives as long as the array
            opened.seek(start + begin * row)
            rows: Array = np.fromfile(opened, dtype, (end - begin) * (row // dtype.itemsize))
            return rows.reshape(end - begin, *shape[1:])

        return LazyArray(shape, dtype, read)
