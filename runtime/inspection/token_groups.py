"""Group tokens by text class, by position in the sequence, by frequent token, and by task.

T tokens, G groups. Every grouping puts each token into one group, so that it can be compared with the choices of a
router.
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

# A token belongs to the first class that fits.
CLASSES = ("line break", "white space", "line start", "number", "capital", "word start", "inside word", "punctuation",
           "other")  # fmt: skip
REST = "all other tokens"


@dataclass(frozen=True)
class Grouping:
    """The group of each token. Groups without a token are left out."""

    name: str
    labels: tuple[str, ...]
    """(G,)."""
    of: Ints
    """(T,): index of the group."""

    @classmethod
    def by(cls, name: str, labels: Sequence[str], of: Sequence[int] | Ints) -> "Grouping":
        """Keep the `labels` that occur in `of`, in their order."""
        present, numbered = np.unique(np.asarray(of, np.int64), return_inverse=True)
        return cls(name, tuple(labels[i] for i in present), numbered.astype(np.int64))

    @property
    def tokens(self) -> Ints:
        """(G,): tokens of each group."""
        return np.bincount(self.of, minlength=len(self.labels))


def token_class(text: str, start: int, end: int) -> str:
    """Return the class of the token `text[start:end]`, from its text and the character before it.

    - line break: contains the end of a line
    - white space: nothing else
    - line start: the first token of its line
    - number: digits and no letters
    - capital: begins with a capital letter
    - word start, inside word: letters that begin a word or continue one
    - punctuation: only punctuation and symbols
    - other: everything else, such as "'s", or no text at all
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
    """Group by text class, in the order of CLASSES."""
    return Grouping.by("classes", CLASSES, [CLASSES.index(token_class(text, *span)) for span in spans])


def by_position(positions: Ints) -> Grouping:
    """Group by positions 0, 1, 2-3, 4-7, 8-15 and so on: most changes happen near the start."""
    begins = [0, *takewhile(lambda begin: begin <= positions.max(initial=0), (2**i for i in count()))]
    ends = [begin - 1 for begin in begins[1:]] + [int(positions.max(initial=0))]
    labels = [f"{begin}-{end}" if begin < end else f"{begin}" for begin, end in zip(begins, ends, strict=True)]
    return Grouping.by("positions", labels, np.searchsorted(begins, positions, side="right") - 1)


def by_token(ids: Sequence[int], pieces: Sequence[str], most: int) -> Grouping:
    """Group by the `most` most frequent tokens, in falling order, and one group of all others.

    A label is the token's text at its first occurrence; ids that share a text (bytes of a character) get their number.
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


def by_task(names: Sequence[str], tokens: Sequence[int]) -> Grouping:
    """Group by task: the first `tokens[0]` tokens belong to the first of `names`, and so on."""
    return Grouping.by("tasks", names, np.repeat(np.arange(len(names)), tokens))


def visible(text: str) -> str:
    """Make all of `text` visible: spaces as ␣, control characters escaped."""
    return printable(text).replace(" ", "␣") or "(no text)"
