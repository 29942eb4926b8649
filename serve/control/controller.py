"""The controller that lowers the dial as a server nears its objective, and raises it again."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...runtime.format.manifest import Curve

LOWER_ABOVE = 0.9
"""Pressure from which the dial is lowered: before the objective is missed."""
AIM = 0.7
"""Pressure that a lowered dial is expected to give."""
RAISE_BELOW = 0.8
"""The dial is raised where the pressure after it is expected below this."""
BUSY_FROM = 0.85
"""Share of the slots in use from which a raise is a try: no queue is there, but one may form."""
SETTLE = 0.25
"""Seconds before the dial is lowered again: a change takes as long to show in what is measured."""
HOLD = 2.0
"""Seconds without pressure before the dial is raised by one point."""
TRIAL = 30.0
"""Seconds within which a try has failed if the dial has to be lowered again: a queue takes that long to form."""
LONGEST_HOLD = 60.0
"""The same before a try, at most: it doubles with each try that failed."""


@dataclass(frozen=True)
class Point:
    """A point of a calibrated dial."""

    compute: float
    cost: float
    """Time or FLOPs of a token, in any unit."""


@dataclass(frozen=True)
class Objective:
    """What a server wants to keep."""

    milliseconds: float | None = None
    """Most milliseconds between two tokens of a text; None sets no limit."""
    wait: float = 2.0
    """Most seconds in the queue."""
    fill: float = 0.5
    """Most of the queue in use, as a share: well below 1, where requests are refused."""


@dataclass(frozen=True)
class Measured:
    """What a server measures."""

    milliseconds: float | None
    """Between two tokens of a text; None where none is decoded."""
    wait: float | None
    """Predicted seconds in the queue of a request that comes now; None where that is unknown."""
    fill: float
    """Share of the queue in use."""
    occupancy: float
    """Share of the slots in use, smoothed."""


class Controller:
    """The dial of requests that let the server choose.

    It moves over the calibrated points. Down at once, as far as the measured pressure needs, because a queue grows
    quickly; up one point at a time, after a while without pressure, and only where the cost of the next point predicts
    that the pressure stays away. With nearly all slots in use that prediction is weak, so a raise is a try there; each
    try that failed doubles the time to the next one. So the dial does not swing.

    Args:
        points: Points of the dial.
        objective: What to keep.
    """

    def __init__(self, points: Sequence[Point], objective: Objective) -> None:
        if not points:
            raise ValueError("found no points, expected those of a calibrated dial")
        self.points = sorted(points, key=lambda one: one.compute)
        self.objective = objective
        self._at = len(self.points) - 1
        self._lowered = self._tried = float("-inf")
        self._calm_since: float | None = None
        self._hold = HOLD

    @property
    def dial(self) -> float:
        """The `compute` in force."""
        return self.points[self._at].compute

    def update(self, now: float, measured: Measured) -> float:
        """Move the dial.

        Args:
            now: The time, in seconds.
            measured: What is measured.

        Returns:
            The cost of a token now, relative to that before: 1 where the dial did not move.
        """
        pressure, before = self.pressure(measured), self.points[self._at].cost
        if pressure > LOWER_ABOVE:
            self._lower(now, pressure)
        else:
            self._raise(now, pressure, measured.occupancy)
        return self.points[self._at].cost / before if before else 1.0

    def pressure(self, measured: Measured) -> float:
        """Return how near the objective is: 1 where it is reached."""
        wanted, terms = self.objective, [measured.fill / self.objective.fill]
        if measured.wait is not None:
            terms.append(measured.wait / wanted.wait)
        if wanted.milliseconds is not None and measured.milliseconds is not None:
            terms.append(measured.milliseconds / wanted.milliseconds)
        return max(terms)

    def _lower(self, now: float, pressure: float) -> None:
        self._calm_since = None
        if not self._at or now - self._lowered < SETTLE:
            return
        if now - self._tried < TRIAL:
            self._hold = min(2 * self._hold, LONGEST_HOLD)
            self._tried = float("-inf")
        wanted = self.points[self._at].cost * AIM / pressure
        fitting = [index for index in range(self._at) if self.points[index].cost <= wanted]
        self._at, self._lowered = (fitting[-1] if fitting else 0), now

    def _raise(self, now: float, pressure: float, occupancy: float) -> None:
        """Raise the dial by one point for each `HOLD` without pressure: several after an idle minute."""
        if self._calm_since is None:
            self._calm_since = now
        while self._at < len(self.points) - 1:
            cost = self.points[self._at].cost
            ratio = self.points[self._at + 1].cost / cost if cost else 1.0
            pressure, occupancy = pressure * ratio, occupancy * ratio
            if pressure >= RAISE_BELOW:
                self._calm_since = now
                return
            busy = occupancy >= BUSY_FROM
            hold = self._hold if busy else HOLD
            if now - self._calm_since < hold:
                return
            self._calm_since += hold
            self._at += 1
            if busy:
                self._tried, self._calm_since = now, now
            else:
                self._hold = HOLD


def points_of(curve: Curve) -> list[Point]:
    """Return the points of a curve, each with its measured time, or its FLOPs where not all have times."""
    timed = [point.milliseconds_per_token for point in curve.points if point.milliseconds_per_token is not None]
    costs = [point.executed_share for point in curve.points]
    if len(timed) == len(curve.points):
        costs = [one.median for one in timed]
    highest, points = 0.0, []
    for point, cost in zip(curve.points, costs, strict=True):
        highest = max(highest, cost)  # a measured time may fall by chance
        points.append(Point(point.compute, highest))
    return points
