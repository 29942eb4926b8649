"""How noisy gradients are: the batch beyond which a larger one buys little."""

from __future__ import annotations

from collections.abc import Sequence

DECAY = 0.9


class Noise:
    """The simple noise scale tr(S) / |G|^2, in sequences: each of the two is averaged before they are divided.

    Source: McCandlish et al. 2018 (arXiv 1812.06162), eq. 2.9 and appendix A.1.
    """

    def __init__(self, state: Sequence[float] | None = None) -> None:
        self.signal, self.noise = state or (0.0, 0.0)

    def state(self) -> list[float]:
        return [self.signal, self.noise]

    def observe(self, signal: float, noise: float) -> float | None:
        """The scale after one more step's |G|^2 and tr(S); None where they make no sense yet."""
        self.signal = DECAY * self.signal + (1 - DECAY) * signal  # both begin at 0: the ratio has no bias from it
        self.noise = DECAY * self.noise + (1 - DECAY) * noise
        return self.noise / self.signal if self.signal > 0 and self.noise > 0 else None
