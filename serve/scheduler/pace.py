"""How fast a model computes, measured, and what follows for those who wait."""

import math
from collections import deque

WINDOW = 5.0
"""Seconds over which `tokens_per_second` is measured."""
SMOOTHING = 0.5
"""Time constant, in seconds, of the time per token."""
LENGTHS = 0.1
"""Weight of the newest text in the mean length."""
OCCUPANCY = 3.0
"""Time constant, in seconds, of the share of slots in use."""


class Pace:
    """Measures passes and texts; the clock is that of the caller."""

    def __init__(self) -> None:
        self.milliseconds_per_token: float | None = None
        """Time between two tokens of a text, smoothed; None until a pass has decoded."""
        self.mean_length: float | None = None
        """New tokens of a text, smoothed; None until one has ended."""
        self.occupancy = 0.0
        """Share of the slots in use, smoothed."""
        self._recent: deque[tuple[float, int]] = deque()  # (time, new tokens) of the last seconds
        self._busy: deque[tuple[float, int]] = deque(maxlen=256)  # (seconds, new tokens) of the last passes

    def passed(self, now: float, seconds: float, new_tokens: int, *, decoded: bool, occupancy: float) -> None:
        """Record a pass.

        Args:
            now: The time at its end.
            seconds: How long it took, with all that goes with a pass.
            new_tokens: Tokens that it gave, of all texts.
            decoded: Whether a text that had begun got a token.
            occupancy: Share of the slots that were in use.
        """
        self._busy.append((seconds, new_tokens))
        if new_tokens:
            self._recent.append((now, new_tokens))
            self._drop_old(now)
        if decoded:
            self.milliseconds_per_token = _smoothed(self.milliseconds_per_token, seconds * 1000, seconds / SMOOTHING)
        self.occupancy = _smoothed(self.occupancy, occupancy, seconds / OCCUPANCY)

    def ended(self, new_tokens: int) -> None:
        """Record the length of a text that ended by itself."""
        old = self.mean_length
        self.mean_length = float(new_tokens) if old is None else old + LENGTHS * (new_tokens - old)

    def dial_moved(self, ratio: float) -> None:
        """Scale the time per token to a dial that was moved, until it is measured there."""
        if self.milliseconds_per_token is not None:
            self.milliseconds_per_token *= ratio
        self._busy.clear()

    def tokens_per_second(self, now: float) -> float:
        """Return the new tokens of all texts over the last `WINDOW` seconds."""
        self._drop_old(now)
        return sum(count for _, count in self._recent) / WINDOW

    def seconds_of(self, tokens: float) -> float:
        """Return how long a text of so many new tokens runs; 0 where nothing is measured."""
        return tokens * (self.milliseconds_per_token or 0.0) / 1000

    def wait(self, before: int) -> float | None:
        """Return in how many seconds `before` texts will have ended; None where nothing is measured."""
        seconds, tokens = (sum(column) for column in zip(*self._busy, strict=True)) if self._busy else (0.0, 0)
        if before <= 0:
            return 0.0
        if self.mean_length is None or not tokens:
            return None
        return before * max(self.mean_length, 1.0) * seconds / tokens

    def _drop_old(self, now: float) -> None:
        while self._recent and self._recent[0][0] <= now - WINDOW:
            self._recent.popleft()


def _smoothed(old: float | None, new: float, share: float) -> float:
    return new if old is None else old + (1 - math.exp(-share)) * (new - old)
