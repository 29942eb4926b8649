"""How often the token after an earlier occurrence comes again, by the length of what agrees."""

from .ngram_index import MAX_MATCH, MIN_MATCH

CLASS_BEGINS = (MIN_MATCH, 3, 4, 5, 7, 9, 13, 17, 25)
"""Shortest match of each class."""
NUM_CLASSES = len(CLASS_BEGINS)
TYPICAL = (0.45, 0.55, 0.6, 0.68, 0.72, 0.76, 0.82, 0.86, 0.9)
"""Share of right predictions in each class, measured on documentation and source code (decision 0029)."""
INITIAL_WEIGHT = 4
"""Observations that `TYPICAL` counts for."""
LONGEST_MEMORY = 40
"""Observations over which a share is averaged."""

TYPICAL_SURPRISE, SURPRISE_MEMORY = 0.4, 20
"""The same for tokens that were mispredicted when they came, and observations over which it is averaged."""

CLASS_OF = tuple(sum(length >= begin for begin in CLASS_BEGINS[1:]) for length in range(MAX_MATCH + 1))
"""The class of each length of match."""


class Acceptance:
    """Shares of right predictions, learned from the text itself: each new token shows whether it was predicted."""

    def __init__(self) -> None:
        self.shares = list(TYPICAL)
        self.surprise = TYPICAL_SURPRISE
        """Share of right predictions where the predicted token was a surprise itself."""
        self._weights = [INITIAL_WEIGHT] * len(TYPICAL)

    def observe(self, length: int, right: bool, *, surprise: bool = False) -> None:
        """Count one prediction from a match of this length.

        Args:
            length: Tokens that agreed.
            right: Whether the predicted token came.
            surprise: Whether the predicted token was itself not the one that was predicted when it came.
        """
        if surprise:
            self.surprise += (right - self.surprise) / SURPRISE_MEMORY
            return
        index = CLASS_OF[length]
        weight = self._weights[index] + 1
        if weight <= LONGEST_MEMORY:
            self._weights[index] = weight
        self.shares[index] += (right - self.shares[index]) / weight

    def share(self, length: int) -> float:
        """Return the share of right predictions from matches of this length."""
        return self.shares[CLASS_OF[min(length, MAX_MATCH)]]
