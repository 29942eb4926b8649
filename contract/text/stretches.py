"""Bounds for one call into the tokenizers library: a stretch of text that nothing breaks up is cut into pieces.

The library splits a text into words by the kind of its characters and works on each word as a whole, in native code
that no signal reaches. A word of a million characters (a genome, a million zeros or spaces) would take minutes to learn
from. The bounds are far beyond those of ordinary text, whose ids are the same with and without them.
"""

import itertools
import re

ENCODED_CHARS = 2**15
"""Longest stretch that is encoded in one piece, in characters: a call of some 0.1 s."""
LEARNED_CHARS = 2**12
"""Longest stretch that a vocabulary is learned from; merging costs time in proportion to its square."""
UNBROKEN_CHARS = 2**20
"""Longest stretch without white space that is encoded in one piece, whatever it is made of."""

_ONE_KIND = r"[^\W_]+|\s+|(?:[^\w\s]|_)+"  # letters and digits, white space, all other signs
_RUNS = re.compile(_ONE_KIND)
_SPACE = re.compile(r"\s")


def cut_stretches(text: str, limit: int, unbroken_limit: int = UNBROKEN_CHARS) -> tuple[list[str], int]:
    """Cut `text` inside each stretch of one kind of characters that is longer than `limit`.

    A stretch of several kinds, but without white space, is cut where it is longer than `unbroken_limit`.

    Returns:
        The pieces, which joined are `text`, and the length of the longest stretch that was cut: 0 where none was.
    """
    if not _has_stretch(text, limit, unbroken_limit):
        return [text], 0
    places: list[int] = []
    longest = 0
    unbroken = 0  # where the stretch without white space began, or was cut
    for run in _RUNS.finditer(text):
        start, end = run.span()
        if end - start > limit:
            places += range(start + limit, end, limit)
            longest = max(longest, end - start)
            unbroken = places[-1]
        if text[start].isspace():
            unbroken = end
        elif end - unbroken > unbroken_limit:
            longest = max(longest, end - unbroken)
            places.append(end)
            unbroken = end
    bounds = [0, *(place for place in places if place < len(text)), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(bounds)], longest


def _has_stretch(text: str, limit: int, unbroken_limit: int) -> bool:
    """Whether a closer look is needed: a stretch beyond a limit covers a block of half the limit."""
    half = limit // 2
    if any(_RUNS.fullmatch(text, at, at + half) for at in range(0, len(text) - half + 1, half)):
        return True
    half = unbroken_limit // 2
    return any(not _SPACE.search(text, at, at + half) for at in range(0, len(text) - half + 1, half))
