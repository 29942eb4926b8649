"""The index of a growing text finds what a plain search finds."""

import random
from collections.abc import Sequence

import pytest
from support.cases import each

from adaptive_lm.runtime.speculation.ngram_index import MAX_CANDIDATES, MAX_MATCH, MIN_MATCH, NgramIndex


def searched(ids: Sequence[int]) -> tuple[int, int]:
    """Compare the end of the text with every place before it, the most recent first."""
    best, longest, end, candidates = 0, 0, len(ids), 0
    for place in range(end - 1, MIN_MATCH - 1, -1):
        length = 0
        while length < min(place, MAX_MATCH) and ids[place - 1 - length] == ids[end - 1 - length]:
            length += 1
        if length >= MIN_MATCH:
            candidates += 1
            if length > longest:
                best, longest = place, length
        if candidates == MAX_CANDIDATES:
            break
    return best, longest


@each("words", [1, 2, 3, 8, 40])
@each("step", [1, 3])
def test_the_longest_and_most_recent_match_is_found_at_every_length_of_the_text(words: int, step: int) -> None:
    draw = random.Random(words)
    ids: list[int] = []
    index = NgramIndex()
    for _ in range(300):
        if len(ids) > 20 and draw.random() < 0.2:  # repeat something longer
            begin = draw.randrange(len(ids) - 10)
            ids += ids[begin : begin + draw.randrange(3, 45)]
        ids += [draw.randrange(words) for _ in range(step)]
        index.extend(ids, len(ids))
        assert index.longest_match(ids) == searched(ids)


@pytest.mark.parametrize("ids", [[], [5], [5, 5], [5, 6], [5, 6, 7]])
def test_a_short_text_has_no_match(ids: list[int]) -> None:
    index = NgramIndex()
    index.extend(ids, len(ids))
    assert index.longest_match(ids) == (0, 0)
    assert len(index) == len(ids)


def test_the_text_may_be_added_in_parts_of_any_length() -> None:
    ids = [1, 2, 3, 1, 2, 3, 1, 2]
    whole, parts = NgramIndex(), NgramIndex()
    whole.extend(ids, len(ids))
    for end in (0, 1, 1, 2, 7, 8):
        parts.extend(ids, end)
    assert parts.longest_match(ids) == whole.longest_match(ids) == (5, 5)


def test_a_search_looks_at_a_bounded_number_of_places() -> None:
    class Counting(list[int]):
        reads = 0

        def __getitem__(self, at: int) -> int:  # type: ignore[override]
            Counting.reads += 1
            return super().__getitem__(at)

    most = 0
    for length in (1_000, 4_000):
        ids = Counting([1, 2] * length + [1])
        index = NgramIndex()
        index.extend(ids, len(ids))
        Counting.reads = 0
        index.longest_match(ids)
        most = max(most, Counting.reads)
    assert most <= MAX_CANDIDATES * 2 * (MAX_MATCH + 1)
