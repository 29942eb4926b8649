"""Text up to a marker: released early, never a part of the marker nor the white space before it."""

from collections.abc import Sequence


def split_at_marker(text: str, markers: Sequence[str]) -> tuple[str, str | None, str]:
    """Split text at the first marker.

    Returns:
        The text before it that is certain, without white space at its end; the marker, None where there is none yet;
        and the rest, which is after the marker or may still become one.
    """
    places = [(place, marker) for marker in markers if (place := text.find(marker)) >= 0]
    if places:
        place, marker = min(places)
        return text[:place].rstrip(), marker, text[place + len(marker) :]
    keep = max((overlap(text, marker) for marker in markers), default=0)
    certain = text[: len(text) - keep].rstrip()
    return certain, None, text[len(certain) :]


def overlap(text: str, marker: str) -> int:
    """Return the length of the longest end of `text` with which `marker` begins, short of all of it."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
