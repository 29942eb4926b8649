"""Values of the options of `adaptive serve`: sizes of memory and files of keys."""

import re
from pathlib import Path

import click

from ...contract.errors import UserError

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SHORTEST_KEY = 8


def parse_bytes(value: str) -> int:
    """Return the bytes of a size such as 512M or 4G: a number with K, M, G or T, each 1024 times the one before.

    Raises:
        click.BadParameter: It is no size, or 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", value.strip(), re.IGNORECASE)
    size = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    if size <= 0:
        raise click.BadParameter(f"found {value!r}, expected a size above 0 such as 512M or 4G")
    return size


def read_keys(path: Path) -> tuple[tuple[str, str], ...]:
    """Read (name, key) from a file: one a line, `#` begins a comment; a key without a name is named by its line.

    Raises:
        UserError: The file cannot be read, or a line is no key. The message never contains one.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise UserError(
            f"the key file {path} cannot be read: {reason}; expected a line `NAME KEY` for each client"
        ) from error
    keys: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        name, key = (words[0], words[1]) if len(words) == 2 else (f"line-{number}", words[0])
        if len(words) > 2 or len(key) < SHORTEST_KEY or not (key.isascii() and key.isprintable()):
            raise UserError(
                f"line {number} of the key file {path} is no key: expected `NAME KEY`, the key of at least "
                f"{SHORTEST_KEY} ASCII characters without spaces"
            )
        if any(name == other or key == same for other, same in keys):
            raise UserError(
                f"line {number} of the key file {path} repeats a name or a key; give each client its own, or remove it"
            )
        keys.append((name, key))
    if not keys:
        raise UserError(f"the key file {path} holds no key; write a line `NAME KEY`, or leave out --api-key-file")
    return tuple(keys)
