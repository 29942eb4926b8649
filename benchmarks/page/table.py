"""A table in Markdown; standard library alone, since `gpu.py` runs without an environment."""

from collections.abc import Iterable


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Return the lines of a table, without the end of the last one."""
    lines = [list(map(str, cells)) for cells in (head, *rows)]
    first, *rest = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([first, "|" + "---|" * len(lines[0]), *rest])
