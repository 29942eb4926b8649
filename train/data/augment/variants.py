"""Variants of one source that take turns, epoch by epoch."""

from bisect import bisect_right
from collections.abc import Sequence

from ..cache import Stream
from ..windows.batches import DocumentWindows, Row, StreamWindows, Windows
from ..windows.order import mix
from .word_noise import Noise, NoisyWindows

NOISE = 11
"""Keeps the random key of the noise apart from those of the variants."""


class VariantWindows:
    """Windows of V variants in turn: epoch e is an epoch of variant e % V, the first of them the text itself.

    A rewritten text has another number of tokens, so the beginning of an epoch is counted and not computed; a window
    remains a function of its number and length.
    """

    def __init__(self, variants: Sequence[Windows]) -> None:
        self._variants = list(variants)
        self._ends: dict[int, list[int]] = {}  # length -> windows up to the end of each epoch counted so far

    def row(self, number: int, length: int) -> Row:
        """Return window `number` of the series.

        Raises:
            ZeroDivisionError: no variant fills a window.
        """
        ends = self._ends.setdefault(length, [])
        while not ends or number >= ends[-1]:
            if len(ends) >= len(self._variants) and ends[-1] == 0:
                raise ZeroDivisionError(f"no window of {length} tokens in any variant")
            self.count(len(ends) + 1, length)
        epoch = bisect_right(ends, number)
        round_, variant = divmod(epoch, len(self._variants))
        windows = self._variants[variant]
        before = windows.count(round_, length) if round_ else 0
        return windows.row(before + number - (ends[epoch - 1] if epoch else 0), length)

    def count(self, epochs: int, length: int) -> int:
        """Count the windows of `length` tokens in the first `epochs` epochs."""
        ends = self._ends.setdefault(length, [])
        while len(ends) < epochs:
            round_, variant = divmod(len(ends), len(self._variants))
            windows = self._variants[variant]
            own = windows.count(round_ + 1, length) - (windows.count(round_, length) if round_ else 0)
            ends.append((ends[-1] if ends else 0) + own)
        return ends[epochs - 1]


def series(
    streams: Sequence[Stream], key: int, pack: str, eos_id: int, noise: Noise | None, lead: int | None = None
) -> Windows:
    """Make the windows of a source.

    Args:
        streams: Its text and the rewritten variants.
        key: Chooses the order of windows.
        pack: "stream" or "documents".
        eos_id: The token id that ends a text.
        noise: Changes the windows, if given.
        lead: The token that each window begins with, that of its task; None for none.
    """
    variants: list[Windows] = []
    for variant, stream in enumerate(streams):
        own = mix(key, variant) if variant else key
        variants.append(
            StreamWindows(stream, own, lead) if pack == "stream" else DocumentWindows(stream, own, eos_id, lead)
        )
    windows = variants[0] if len(variants) == 1 else VariantWindows(variants)
    return windows if noise is None else NoisyWindows(windows, noise, mix(key, NOISE))
