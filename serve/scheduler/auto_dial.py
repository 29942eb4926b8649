"""The dial of the jobs that let the server choose it, moved with the load."""

from collections.abc import Iterable

from ...runtime.format.manifest import Manifest
from ..control.controller import Controller, Measured
from ..control.pace import Pace
from ..control.points import Points
from .ticket import Ticket

CONTROL_SECONDS = 0.05
"""Time between two looks at the load."""


class AutoDial:
    """The dial of one model's jobs with `auto`. Its methods are called in the thread of the engine.

    Args:
        controller: Decides where the dial stands.
        manifest: The model, which is calibrated.
        pace: How fast it computes.
    """

    def __init__(self, controller: Controller, manifest: Manifest, pace: Pace) -> None:
        self._controller, self._points, self._pace = controller, Points(manifest), pace
        self._next_look = float("-inf")

    @property
    def compute(self) -> float:
        """The `compute` in force; may be read in any thread."""
        return self._controller.dial

    def due(self, now: float) -> bool:
        """Return whether it is time to look at the load again."""
        return now >= self._next_look

    def look(self, now: float, running: Iterable[Ticket], *, wait: float | None, fill: float) -> None:
        """Let the controller see the load, and move the dial of the running jobs.

        Args:
            now: The time.
            running: The jobs that have a slot.
            wait: Predicted seconds in the queue of a job that comes now; None where that is unknown.
            fill: Share of the queue in use.
        """
        self._next_look = now + CONTROL_SECONDS
        tickets = list(running)
        milliseconds, occupancy = (self._pace.milliseconds_per_token, self._pace.occupancy) if tickets else (None, 0.0)
        before = self.compute
        ratio = self._controller.update(now, Measured(milliseconds, wait, fill, occupancy))
        if self.compute != before:
            self._pace.dial_moved(ratio)
            for ticket in tickets:
                self.set(ticket)

    def set(self, ticket: Ticket) -> None:
        """Give a job the dial in force, if it lets the server choose."""
        auto, request = ticket.job.auto, ticket.request
        if auto is None:
            return
        ticket.dial = max(self.compute, auto.least)
        request.thresholds = self._points.at(ticket.dial)
        if request.sequence is not None:
            request.sequence.thresholds = request.thresholds
