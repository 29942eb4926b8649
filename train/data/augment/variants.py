"""Several wordings of one source that take turns, epoch by epoch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from ..batches import DocumentWindows, Row, StreamWindows, Windows
from ..cache import Stream
from ..order import mix
from .word_noise import Noise, NoisyWindows

NOISE = 11
"""What sets the key of the noise apart from those of the variants."""


class VariantWindows:
    """Epoch e is an epoch of variant e % V, the first of them the text itself.

    A rewritten text has another number of tokens, so where an epoch begins is counted and not computed; which window
    has which number remains a function of number and length.
    """

    def __init__(self, variants: Sequence[Windows]) -> None:
        self._variants = list(variants)
        self._ends: dict[int, list[int]] = {}  # length -> windows up to the end of each epoch counted so far

    def row(self, number: int, length: int) -> Row:
        """Window `number` of the series. Raises ZeroDivisionError where no variant fills a window."""
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
        """How many windows of `length` tokens the first `epochs` epochs have."""
        ends = self._ends.setdefault(length, [])
        while len(ends) < epochs:
            round_, variant = divmod(len(ends), len(self._variants))
            windows = self._variants[variant]
            own = windows.count(round_ + 1, length) - (windows.count(round_, length) if round_ else 0)
            ends.append((ends[-1] if ends else 0) + own)
        return ends[epochs - 1]


def series(streams: Sequence[Stream], key: int, pack: str, eos_id: int, noise: Noise | None) -> Windows:
    """The windows of a source, from its text and the rewritten ones of it, packed as `pack` says and changed by
    `noise`."""
    made: list[Windows] = []
    for variant, stream in enumerate(streams):
        own = mix(key, variant) if variant else key
        made.append(StreamWindows(stream, own) if pack == "stream" else DocumentWindows(stream, own, eos_id))
    windows = made[0] if len(made) == 1 else VariantWindows(made)
    return windows if noise is None else NoisyWindows(windows, noise, mix(key, NOISE))
