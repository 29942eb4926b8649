"""An index of a growing text that finds where its end occurred before."""

from collections.abc import Sequence

MIN_MATCH = 2
"""Tokens that must agree. One alone predicts the next in a quarter of the cases, which never pays."""
MAX_MATCH = 32
"""Agreement beyond this is not counted: its predictions are no better."""
MAX_CANDIDATES = 8
"""Places that are compared, the most recent first; comparing 64 finds at most 2 % more (decision 0029)."""


class NgramIndex:
    """Remembers where each pair of tokens ended last, and for each of those places the one before it.

    Adding a token takes constant time and about 150 bytes; so does a search, whatever the length of the text.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[int, int], int] = {}
        """The position after the last occurrence of each pair."""
        self._before: list[int] = []
        """For each position the one before it that follows the same pair; 0 for none."""

    def __len__(self) -> int:
        """Return the number of tokens added."""
        return len(self._before)

    def extend(self, ids: Sequence[int], end: int) -> None:
        """Add the tokens of `ids` up to position `end`."""
        last, before = self._last, self._before
        begin = len(before)
        if begin == 0 and end:
            before.append(0)
            begin = 1
        for at in range(begin, end):
            pair = ids[at - 1], ids[at]
            before.append(last.get(pair, 0))
            last[pair] = at + 1

    def longest_match(self, ids: Sequence[int]) -> tuple[int, int]:
        """Return the position after the longest earlier occurrence of the end of the text, and the length of that.

        Of several as long, it is the most recent. (0, 0) if fewer than `MIN_MATCH` tokens agree.
        """
        end = len(self._before)
        if end < MIN_MATCH:
            return 0, 0
        place, best, longest = self._before[-1], 0, 0
        for _ in range(MAX_CANDIDATES):
            if place == 0:
                break
            # A longer match must agree at the token where the best one so far ends.
            if longest < place and ids[place - 1 - longest] == ids[end - 1 - longest]:
                length = MIN_MATCH
                limit = min(place, MAX_MATCH)
                while length < limit and ids[place - 1 - length] == ids[end - 1 - length]:
                    length += 1
                if length > longest:
                    best, longest = place, length
                    if length == MAX_MATCH:
                        break
            place = self._before[place - 1]
        return best, longest
