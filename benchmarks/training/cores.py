"""Cores that trainings are pinned to, one each."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue


class Cores:
    """The first `count` cores that this process may use, lent to threads."""

    def __init__(self, count: int) -> None:
        self._free: Queue[int] = Queue()
        for core in sorted(os.sched_getaffinity(0))[:count]:
            self._free.put(core)

    @contextmanager
    def one(self) -> Iterator[int]:
        """Lend a core until the block ends; wait where none is free."""
        core = self._free.get()
        try:
            yield core
        finally:
            self._free.put(core)
