"""Whether a text is code, so that nothing is shuffled or replaced in it."""

from __future__ import annotations

import re
from pathlib import PurePath

ENDINGS = frozenset(
    ".py .pyi .ipynb .js .mjs .ts .tsx .jsx .c .h .cc .cpp .hpp .cu .cs .java .kt .go .rs .rb .php .pl .sh .bash .sql "  # noqa: SIM905 - as people read them
    ".swift .scala .lua .r .jl .hs .ml .html .css .scss .xml .json .yaml .yml .toml .ini .cfg .diff .patch".split()
)
SHARE = 0.4
"""Of the lines that are not empty; prose has nearly none of them."""
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
    """By the name of its file: any of its endings, as in `train.py.txt`."""
    return any(ending.lower() in ENDINGS for ending in PurePath(name).suffixes[:-1])


def looks_like_code(text: str) -> bool:
    """By its shape: at least SHARE of the lines are statements, calls, assignments, markup or end in a brace.

    The text of one line must be a statement on the whole; a fence of three backticks is code whatever it holds.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return False
    if lines[0].lstrip().startswith("```"):
        return True
    return sum(_LINE.match(line) is not None for line in lines) >= SHARE * len(lines)


def paragraphs(text: str) -> list[tuple[str, bool]]:
    """The text in pieces, cut at empty lines, each with whether it is code; joined they are the text.

    A fence holds until it is closed, empty lines included.
    """
    found: list[tuple[str, bool]] = []
    fenced = False
    for piece in re.split(r"(\n[ \t]*\n\s*)", text):
        fences = piece.count("```")
        found.append((piece, fenced or fences > 0 or looks_like_code(piece)))
        fenced ^= fences % 2 == 1
    return found
