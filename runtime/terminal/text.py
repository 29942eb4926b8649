"""Text for a terminal: the console, and characters that are safe to print."""

import sys

from rich.console import Console

PLAIN_WIDTH = 160
"""Columns of a table where the stream is not a terminal."""


def console(*, stderr: bool = True) -> Console:
    """Open a console on stderr or stdout: in colour and as wide as the terminal, or plain if it is not a terminal."""
    width = None if (sys.stderr if stderr else sys.stdout).isatty() else PLAIN_WIDTH
    return Console(stderr=stderr, highlight=False, soft_wrap=True, width=width)


def printable(text: str, *, lines: bool = False) -> str:
    """Escape the control characters by which a model could control the terminal; `lines` keeps line ends and tabs."""
    return "".join(char if char.isprintable() or (lines and char in "\n\t") else repr(char)[1:-1] for char in text)


def size(count: float) -> str:
    """Format a number of bytes."""
    if count < 2**20:
        return f"{count / 2**10:.1f} KiB"
    return f"{count / 2**20:.1f} MiB" if count < 100 * 2**20 else f"{count / 2**20:.0f} MiB"
