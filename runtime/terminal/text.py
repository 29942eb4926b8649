"""Text for a terminal: the console on stderr, and characters that are safe to print."""

import sys

from rich.console import Console

PLAIN_WIDTH = 160  # of a table where stderr is no terminal


def console() -> Console:
    """Writes to stderr, in colour where that is a terminal."""
    width = None if sys.stderr.isatty() else PLAIN_WIDTH
    return Console(stderr=True, highlight=False, soft_wrap=True, width=width)


def printable(text: str, *, lines: bool = False) -> str:
    """`text` without the control characters by which a model could steer a terminal; line ends stay where `lines`."""
    return "".join(char if char.isprintable() or (lines and char in "\n\t") else repr(char)[1:-1] for char in text)
