"""Tokens by what they are: text class, position in the sequence, and which of the frequent ones.

T tokens, G groups. Every grouping puts each token in one group, so that what a router chooses can be held against it.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, takewhile

import numpy as np
from numpy.typing import NDArray

from ..terminal.text import printable

Ints = NDArray[np.int64]

# In order: a token is of the first that fits.
CLASSES = ("line break", "white space", "line start", "number", "capital", "word start", "inside word", "punctuation",
           "other")  # fmt: skip
REST = "all other tokens"


@dataclass(frozen=True)
class Grouping:
    """Which group each token is in; groups without a token are left out."""

    name: str
    labels: tuple[str, ...]  # (G,)
    of: Ints  # (T,)

    @classmethod
    def by(cls, name: str, labels: Sequence[str], of: Sequence[int] | Ints) -> "Grouping":
        """Of those `labels` that occur in `of`, in their order."""
        held, numbered = np.unique(np.asarray(of, np.int64), return_inverse=True)
        return cls(name, tuple(labels[i] for i in held), numbered.astype(np.int64))

    @property
    def tokens(self) -> Ints:
        """(G,): how many each group has."""
        return np.bincount(self.of, minlength=len(self.labels))


def token_class(text: str, start: int, end: int) -> str:
    """The class of the token that stands for `text[start:end]`, by itself and by the character before it.

    line break: holds an end of line; white space: nothing else; line start: the first of its line; number: digits and
    no letters; capital: begins with one; word start, inside word: letters that begin a word or go on with one;
    punctuation: signs alone; other: all the rest, such as "'s", or no text at all.
    """
    piece = text[start:end]
    bare = piece.strip()
    if "\n" in piece or "\r" in piece:
        return "line break"
    if not bare:
        return "white space" if piece else "other"
    begin = start + len(piece) - len(piece.lstrip())
    before = text[begin - 1 : begin]
    if before in ("", "\n", "\r"):
        return "line start"
    if any(map(str.isdigit, bare)) and not any(map(str.isalpha, bare)):
        return "number"
    if bare[0].isupper():
        return "capital"
    if bare[0].isalpha():
        return "inside word" if before.isalnum() else "word start"
    signs = all(unicodedata.category(char)[0] in "PS" for char in bare)
    return "punctuation" if signs else "other"


def by_class(text: str, spans: Sequence[tuple[int, int]]) -> Grouping:
    """Text classes, in the order of CLASSES."""
    return Grouping.by("classes", CLASSES, [CLASSES.index(token_class(text, *span)) for span in spans])


def by_position(positions: Ints) -> Grouping:
    """Positions 0, 1, 2-3, 4-7, 8-15 and so on: what changes with the position changes most at the start."""
    begins = [0, *takewhile(lambda begin: begin <= positions.max(initial=0), (2**i for i in count()))]
    ends = [begin - 1 for begin in begins[1:]] + [int(positions.max(initial=0))]
    labels = [f"{begin}-{end}" if begin < end else f"{begin}" for begin, end in zip(begins, ends, strict=True)]
    return Grouping.by("positions", labels, np.searchsorted(begins, positions, side="right") - 1)


def by_token(ids: Sequence[int], pieces: Sequence[str], most: int) -> Grouping:
    """The `most` most frequent tokens, the more frequent first, and one group of all others.

    A label is the token's text where it first stands; ids that share a text (bytes of one character) get their number.
    """
    texts: dict[int, str] = {}
    for token, piece in zip(ids, pieces, strict=True):
        texts.setdefault(token, piece)
    frequent = [token for token, _ in Counter(ids).most_common(most)]
    shown = {token: visible(texts[token]) for token in frequent}
    twice = {label for label, number in Counter(shown.values()).items() if number > 1}
    labels = [f"{shown[token]} #{token}" if shown[token] in twice else shown[token] for token in frequent]
    place = {token: i for i, token in enumerate(frequent)}
    return Grouping.by("tokens", [*labels, REST], [place.get(token, len(frequent)) for token in ids])


def visible(text: str) -> str:
    """`text` so that all of it can be seen: spaces as ␣, what steers a terminal as an escape."""
    return printable(text).replace(" ", "␣") or "(no text)"
