"""Recognise code, so that nothing is shuffled or replaced in it."""

import re
from pathlib import Path

from ....contract.text.compression import without_compression
from ..sources.files import EXTENSIONS

ENDINGS = frozenset(
    ".py .pyi .ipynb .js .mjs .ts .tsx .jsx .c .h .cc .cpp .hpp .cu .cs .java .kt .go .rs .rb .php .pl .sh .bash .sql "  # noqa: SIM905 - as people read them
    ".swift .scala .lua .r .jl .hs .ml .html .css .scss .xml .json .yaml .yml .toml .ini .cfg .diff .patch".split()
)
SHARE = 0.4
"""A text is code from this share of lines that look like code, empty lines aside. Prose has nearly none."""
_LINE = re.compile(
    r"""^\s*(?:
        (?:def|class)\s+\w+.*:\s*$
        | from\s+[\w.]+\s+import\b
        | import\s+[\w.]+(?:\s+as\s+\w+|\s*,\s*[\w.]+)*\s*$
        | (?:return|raise|yield|assert|await)\b.*[\w)\]}"']\s*$
        | (?:if|for|while|with|elif|else|try|except|finally|async)\b.*:\s*$
        | (?:public|private|static|void|int|const|let|var|function|func|fn|struct|enum|package|namespace)\s+\w+.*[{;(=]
        | \#\s*(?:include|define|ifn?def|endif|!/)
        | (?://|/\*|\*/|<!--|>>>|\.\.\.\ |\$\s)
        | </?[\w-]+[^>]*>\s*$
        | @\w[\w.]*(?:\(.*\))?\s*$
        | ["'][\w-]+["']\s*:\s
        | [\w.\[\]"']+\s*(?:[-+*/|&]?=|:=|<-)\s*\S
        | [\w.]+\(.*\)\s*[;:{]?\s*$
        | .*[=()\[\]].*;\s*$
        | .*[{}]\s*[;,]?\s*$
    )""",
    re.VERBOSE,
)


def named_as_code(name: str) -> bool:
    """Return whether any ending in the name of a file is that of code, as in `train.py` and `train.py.txt`.

    The last ending does not count where it is that of records or of plain text.
    """
    *others, last = ["", *without_compression(Path(name)).suffixes]
    endings = others if last.lower() in EXTENSIONS else [*others, last]
    return any(ending.lower() in ENDINGS for ending in endings)


def looks_like_code(text: str) -> bool:
    """Return whether a text is code, judged by its lines.

    At least SHARE of them are statements, calls, assignments, markup or end in a brace. A text of one line must be one
    statement; a fence of three backticks is always code.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return False
    if lines[0].lstrip().startswith("```"):
        return True
    return sum(_LINE.match(line) is not None for line in lines) >= SHARE * len(lines)


def paragraphs(text: str) -> list[tuple[str, bool]]:
    """Cut a text at empty lines into pieces, each with whether it is code. Joined, they are the text.

    A fence continues until it is closed, over empty lines too.
    """
    pieces: list[tuple[str, bool]] = []
    fenced = False
    for piece in re.split(r"(\n[ \t]*\n\s*)", text):
        fences = piece.count("```")
        pieces.append((piece, fenced or fences > 0 or looks_like_code(piece)))
        fenced ^= fences % 2 == 1
    return pieces
