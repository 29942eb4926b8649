"""Texts that come with the package, or with Python itself."""

import importlib.resources
import json
from collections.abc import Iterator

BUILTINS = ("facts", "python-docs")


def builtin_records(name: str) -> Iterator[object]:
    """Read the records, always in one order: {"prompt", "completion"} of "facts", strings of "python-docs"."""
    if name == "facts":
        with importlib.resources.files(__package__).joinpath("facts.jsonl").open(encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines if line.strip())
    elif name == "python-docs":
        # The language reference inside CPython: its text depends on the Python version, and so do the tokens.
        from pydoc_data.topics import topics

        yield from (topics[title] for title in sorted(topics))
    else:
        raise ValueError(f"no built-in text {name!r}")
