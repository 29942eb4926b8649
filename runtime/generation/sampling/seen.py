"""The tokens that a text holds."""

import numpy as np
from numpy.typing import NDArray


class Seen:
    """The tokens of a text, each once."""

    def __init__(self, vocab_size: int, prompt: list[int]) -> None:
        self._is_seen = np.zeros(vocab_size, dtype=bool)
        self._is_seen[prompt] = True
        first = np.flatnonzero(self._is_seen)
        self._ids = np.zeros(max(vocab_size, 1), np.int32)
        self._ids[: len(first)] = first
        self._count = len(first)

    @property
    def ids(self) -> NDArray[np.int32]:
        """The ids, in any order; a view that the next `add` leaves as it is."""
        return self._ids[: self._count]

    def add(self, token: int) -> None:
        """Add a token, if it is new."""
        if not self._is_seen[token]:
            self._is_seen[token] = True
            self._ids[self._count] = token
            self._count += 1
