"""How fast a model computes, measured, and what follows for those who wait."""

import math
from collections import deque

WINDOW = 5.0
"""Seconds over which `tokens_per_second` is measured."""
BUCKET = 0.1
"""Seconds of passes that are counted together."""
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
        self._recent: deque[tuple[float, int]] = deque()  # (begin, new tokens) of each `BUCKET` of the last seconds
        self._seconds = self._tokens = 0.0  # of passes, fading

    def passed(self, now: float, seconds: float, new_tokens: int, *, decoding: int, occupancy: float) -> None:
        """Record a pass.

        Args:
            now: The time at its end.
            seconds: How long it took, with all that goes with a pass.
            new_tokens: Tokens that it gave, of all texts.
            decoding: Texts that had begun before it.
            occupancy: Share of the slots that were in use.
        """
        fade = math.exp(-seconds / WINDOW)
        self._seconds, self._tokens = self._seconds * fade + seconds, self._tokens * fade + new_tokens
        if new_tokens and self._recent and now - self._recent[-1][0] < BUCKET:
            self._recent[-1] = (self._recent[-1][0], self._recent[-1][1] + new_tokens)
        elif new_tokens:
            self._recent.append((now, new_tokens))
            self._drop_old(now)
        if decoding:
            milliseconds = 1000 * seconds / max(new_tokens / decoding, 1.0)  # drafts may add some
            self.milliseconds_per_token = _smoothed(self.milliseconds_per_token, milliseconds, seconds / SMOOTHING)
        self.occupancy = _smoothed(self.occupancy, occupancy, seconds / OCCUPANCY)

    def ended(self, new_tokens: int) -> None:
        """Record the length of a text that ended by itself."""
        old = self.mean_length
        self.mean_length = float(new_tokens) if old is None else old + LENGTHS * (new_tokens - old)

    def dial_moved(self, ratio: float) -> None:
        """Scale the times to a dial that was moved, until they are measured there."""
        self._seconds *= ratio
        if self.milliseconds_per_token is not None:
            self.milliseconds_per_token *= ratio

    def tokens_per_second(self, now: float) -> float:
        """Return the new tokens of all texts over the last `WINDOW` seconds."""
        self._drop_old(now)
        return sum(count for _, count in self._recent) / WINDOW

    def seconds_of(self, tokens: float) -> float:
        """Return how long a text of that number of new tokens runs; 0 where nothing is measured."""
        return tokens * (self.milliseconds_per_token or 0.0) / 1000

    def wait(self, before: int) -> float | None:
        """Return in how many seconds `before` texts will have ended; None where nothing is measured."""
        if before <= 0:
            return 0.0
        if self.mean_length is None or not self._tokens:
            return None
        return before * max(self.mean_length, 1.0) * self._seconds / self._tokens

    def _drop_old(self, now: float) -> None:
        while self._recent and self._recent[0][0] <= now - WINDOW:
            self._recent.popleft()


def _smoothed(old: float | None, new: float, share: float) -> float:
    return new if old is None else old + (1 - math.exp(-share)) * (new - old)
