"""A section of a page that a benchmark writes; standard library alone, since `gpu.py` runs without an environment."""

import re
from pathlib import Path


def markers(name: str) -> tuple[str, str]:
    """Return the lines that begin and end the section of a benchmark."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def replace_section(page: Path, name: str, text: str) -> None:
    """Replace what is between the markers of a benchmark on a page.

    Raises:
        RuntimeError: The page has no such markers.
    """
    begin, end = markers(name)
    content = page.read_text(encoding="utf-8")
    if begin not in content or end not in content:
        raise RuntimeError(f"{page} has no lines {begin} and {end}; add both where the section belongs")
    section = f"{begin}\n\n{text}\n{end}"
    page.write_text(re.sub(f"{begin}.*{end}", lambda _: section, content, flags=re.DOTALL), encoding="utf-8")
