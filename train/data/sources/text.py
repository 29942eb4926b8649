"""Plain text files, read in pieces: a file of any size is one document and is never in memory whole."""

from collections.abc import Iterator
from pathlib import Path

from ....contract.text.compression import CHUNK_BYTES
from ....contract.text.file import text_pieces

# Strings of about this length are tokenised one by one; a batch of them keeps every core busy.
PIECE_CHARS = 2**15
# A stretch longer than this without line end or space is cut anywhere: memory stays bounded for any file.
MAX_PENDING_CHARS = CHUNK_BYTES


def text_chunks(path: Path, cut: int) -> Iterator[tuple[bool, str, bool]]:
    """Read a document in pieces (held out, text, last piece of its part), cut after `cut` characters.

    Pieces end at line boundaries where the tokenizers we train could not join two tokens across them.
    """
    for held_out in (False, True):
        pieces = _part(path, cut, held_out)
        previous: str | None = None
        for piece in rechunk(pieces):
            if previous is not None:
                yield held_out, previous, False
            previous = piece
        if previous is not None:
            yield held_out, previous, True


def _part(path: Path, cut: int, held_out: bool) -> Iterator[str]:
    """Read the pieces before (or after) the first `cut` characters."""
    seen = 0
    for _, text in text_pieces(path):
        if held_out:
            if seen + len(text) > cut:
                yield text[max(0, cut - seen) :]
        else:
            if seen >= cut:
                return
            yield text[: cut - seen]
        seen += len(text)


def rechunk(pieces: Iterator[str]) -> Iterator[str]:
    """Cut the same text into pieces of about `PIECE_CHARS`, where tokens end."""
    pending = ""
    for piece in pieces:
        text, start = pending + piece, 0
        while len(text) - start > PIECE_CHARS:
            limit = start + PIECE_CHARS
            end = line_boundary(text, start, limit) or word_boundary(text, start, limit)
            if not end:  # a long stretch without spaces: up to the next line, or to the limit of memory
                end = line_boundary(text, start, len(text))
            if not end and len(text) - start >= MAX_PENDING_CHARS:
                end = len(text)
            if not end:
                break
            yield text[start:end]
            start = end
        pending = text[start:]
    if pending:
        yield pending


def line_boundary(text: str, start: int, end: int) -> int:
    r"""Find the last place in (start, end) after a newline between two visible characters; 0 for none.

    Cut there, text has the tokens of the whole: both the GPT-2 pattern of byte-level BPE and our `words` pattern make
    such a newline a token of its own. (In a longer run of white space they look ahead, so that is not cut.)
    """
    at = text.rfind("\n", start, end - 1)
    while at > start:
        if not text[at + 1].isspace() and not text[at - 1].isspace():
            return at + 1
        at = text.rfind("\n", start, at)
    return 0


def word_boundary(text: str, start: int, end: int) -> int:
    """Find the last place in (start, end) before a space that follows a visible character; 0 for none.

    A token of those patterns may begin with a space but never contains one after a visible character.
    """
    at = text.rfind(" ", start + 1, end)
    while at > start:
        if not text[at - 1].isspace():
            return at
        at = text.rfind(" ", start + 1, at)
    return 0
