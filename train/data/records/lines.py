"""Lines of a text file, read one at a time."""

from collections.abc import Iterator
from pathlib import Path

from ....contract.text.file import text_pieces


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""Read lines with their numbers from 1, ends kept. Only "\n" ends a line, as JSON lines and CSV want it.

    Raises:
        UserError: the file cannot be read or is not text.
    """
    number = 1
    pending: list[str] = []
    for _, text in text_pieces(path):
        *whole, rest = text.split("\n")
        for line in whole:
            yield number, "".join([*pending, line, "\n"])
            number += 1
            pending.clear()
        if rest:
            pending.append(rest)
    if pending:
        yield number, "".join(pending)
