"""The noise scale of gradients: the batch size beyond which a larger batch gains little."""

from __future__ import annotations

from collections.abc import Sequence

DECAY = 0.9


class Noise:
    """Estimate the simple noise scale tr(S) / |G|^2, in sequences; both are averaged before the division.

    Source: McCandlish et al. 2018 (arXiv 1812.06162), eq. 2.9 and appendix A.1.
    """

    def __init__(self, state: Sequence[float] | None = None) -> None:
        self.signal, self.noise = state or (0.0, 0.0)

    def state(self) -> list[float]:
        """Return what a checkpoint stores."""
        return [self.signal, self.noise]

    def observe(self, signal: float, noise: float) -> float | None:
        """Add one step's |G|^2 and tr(S); return the scale, or None while the averages are not positive."""
        self.signal = DECAY * self.signal + (1 - DECAY) * signal  # both begin at 0, which cancels in the ratio
        self.noise = DECAY * self.noise + (1 - DECAY) * noise
        return self.noise / self.signal if self.signal > 0 and self.noise > 0 else None
