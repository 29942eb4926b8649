"""The time of a pass by its number of rows, measured while generating."""

import math
from collections import deque
from collections.abc import Iterable, Sequence

MAX_ROWS = 32
"""Passes of more rows are not measured."""
SAMPLES = 9
"""Newest times of each number of rows. The lower quartile counts: other programs make passes slower, never faster."""
ENOUGH = 3
"""Times that are believed; where there are fewer, estimates take the places of the others."""
REFRESH_PASSES = 64
"""Passes after which the curve is computed again."""
FORGET_PASSES = 1024
"""Passes after which one old time of each number of rows is dropped, so that a wrong one is measured again."""

DISTURBED = 1.3
"""A pass that took longer than the measured time of such passes by this factor was disturbed by other programs."""


def typical_cost(rows: int) -> float:
    """Return the time of a pass in that of a row alone, where nothing was measured: 1, 1.45, 1.8, 2.1 ... 2.9 for 8.

    Rows of one text share some of the experts, so the second costs more than the tenth.
    """
    return 1 + 0.45 * math.pow(rows - 1, 0.75)


def quartile(values: Iterable[float]) -> float:
    """Return the lower quartile, one of the values; the median of three."""
    ordered = sorted(values)
    return ordered[min(max(len(ordered) // 4, 1), len(ordered) - 1)]


def repeat_seconds(curve: Sequence[float], rows: int, wrong: int) -> float:
    """Return the time that is lost where token `wrong` of a draft, from 1, is the first that is wrong.

    The states after the pass are those after the wrong tokens too. The next pass begins at the states before it, and
    computes the token before the draft and the right ones again: as many as `wrong`, beside its own rows.

    Args:
        curve: Seconds of a pass by rows.
        rows: Rows of the next pass without these.
        wrong: Place in the draft.
    """
    return curve[rows + wrong] - curve[rows]


def repeat_loss(curve: Sequence[float], rows: int, again: int, seconds: float) -> float:
    """Return what rows that were computed again cost, in passes without them.

    Args:
        curve: Seconds of a pass by rows.
        rows: Rows of the pass.
        again: How many of them were computed again.
        seconds: Time of the pass.
    """
    if not curve or rows > MAX_ROWS:
        return 0.0
    return max(min(seconds, DISTURBED * curve[rows]) / curve[rows - again] - 1, 0.0)


class PassCosts:
    """Lower quartiles of the seconds of passes, by rows; in between and beyond by `typical_cost`."""

    def __init__(self) -> None:
        self._seconds: list[deque[float]] = [deque(maxlen=SAMPLES) for _ in range(MAX_ROWS + 1)]
        self._passes = 0
        self._curve: list[float] = []

    def add(self, rows: int, seconds: float) -> None:
        """Add the time of one pass."""
        if rows > MAX_ROWS:
            return
        self._seconds[rows].append(seconds)
        self._passes += 1
        if self._passes % REFRESH_PASSES == 0 or len(self._seconds[rows]) == 1:
            self._curve = []
        if self._passes % FORGET_PASSES == 0:
            for samples in self._seconds[2:]:
                if samples:
                    samples.popleft()

    def curve(self) -> list[float]:
        """Return the seconds of a pass of 0, 1, ... `MAX_ROWS` rows, rising; those never measured are estimated.

        Empty where no pass was measured yet. It is the same list until it is computed again.
        """
        if not self._curve:
            self._curve = self._estimate()
        return self._curve

    def _estimate(self) -> list[float]:
        points = self._points()
        if not points:
            return []
        curve = [0.0] * (MAX_ROWS + 1)
        low, high = points[0], points[0]
        following = iter(points[1:])
        for rows in range(1, MAX_ROWS + 1):
            if rows > high[0]:
                low, high = high, next(following, high)
            if low[0] <= rows <= high[0] and low is not high:
                seconds = low[1] + (high[1] - low[1]) * (rows - low[0]) / (high[0] - low[0])
            else:  # before the first point, or after the last
                seconds = high[1] * typical_cost(rows) / typical_cost(high[0])
            curve[rows] = max(seconds, curve[rows - 1])
        return curve

    def _points(self) -> list[tuple[int, float]]:
        """Return (rows, seconds) where something was measured."""
        measured = [(rows, samples) for rows, samples in enumerate(self._seconds) if samples]
        if not measured:
            return []
        anchor, samples = max(measured, key=lambda one: len(one[1]))
        scale = quartile(samples) / typical_cost(anchor)
        points = []
        for rows, samples in measured:
            estimates = [scale * typical_cost(rows)] * (ENOUGH - len(samples))
            points.append((rows, quartile([*samples, *estimates])))
            if not estimates:
                scale = points[-1][1] / typical_cost(rows)  # the next ones are estimated from this one
        return points
