"""The dial under load, by a scripted clock and a simulated server."""

from collections import deque

import pytest
from support.graphs.rich_graph import CURVE

from adaptive_lm.runtime.format.manifest import Curve
from adaptive_lm.serve.control.controller import HOLD, SETTLE, Controller, Measured, Objective, Point, points_of

POINTS = [Point(compute, compute) for compute in (0.2, 0.4, 0.6, 0.8, 1.0)]
CALM = Measured(milliseconds=1.0, wait=0.0, fill=0.0, occupancy=0.1)


def controller(**objective: float) -> Controller:
    return Controller(POINTS, Objective(**{"milliseconds": 10.0, "wait": 2.0, **objective}))


def test_without_load_everything_runs() -> None:
    dial = controller()
    assert dial.dial == 1.0
    assert dial.update(0.0, CALM) == 1.0
    assert dial.dial == 1.0


@pytest.mark.parametrize(
    "measured",
    [
        Measured(milliseconds=9.5, wait=0.0, fill=0.0, occupancy=1.0),
        Measured(milliseconds=None, wait=1.9, fill=0.0, occupancy=1.0),
        Measured(milliseconds=1.0, wait=None, fill=0.48, occupancy=1.0),
    ],
    ids=["time per token", "wait", "queue"],
)
def test_each_objective_that_comes_near_lowers_the_dial_before_it_is_missed(measured: Measured) -> None:
    dial = controller()
    assert dial.pressure(measured) < 1
    assert dial.update(0.0, measured) == pytest.approx(0.6)
    assert dial.dial == 0.6


def test_the_dial_falls_as_far_as_the_load_needs_and_not_below_the_lowest_point() -> None:
    dial = controller()
    assert dial.update(0.0, Measured(milliseconds=30.0, wait=0.0, fill=0.0, occupancy=1.0)) == pytest.approx(0.2)
    assert dial.update(9.0, Measured(milliseconds=30.0, wait=0.0, fill=0.0, occupancy=1.0)) == 1.0
    assert dial.dial == 0.2


def test_a_change_has_time_to_show_before_the_next() -> None:
    dial, slow = controller(), Measured(milliseconds=11.0, wait=0.0, fill=0.0, occupancy=1.0)
    dial.update(0.0, slow)
    dial.update(SETTLE / 2, slow)
    assert dial.dial == 0.6
    dial.update(SETTLE, slow)
    assert dial.dial < 0.6


def test_the_dial_rises_by_one_point_for_each_calm_while() -> None:
    dial = controller()
    dial.update(0.0, Measured(milliseconds=30.0, wait=0.0, fill=0.0, occupancy=1.0))
    seen = []
    for tick in range(1, 100):
        dial.update(tick * 0.1, CALM)
        seen.append(dial.dial)
    assert sorted(set(seen)) == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert seen == sorted(seen)
    assert seen.index(0.4) == pytest.approx(HOLD / 0.1, abs=2)


def test_after_an_idle_minute_the_dial_is_up_at_once() -> None:
    dial = controller()
    dial.update(0.0, Measured(milliseconds=30.0, wait=0.0, fill=0.0, occupancy=1.0))
    dial.update(1.0, CALM)
    dial.update(61.0, CALM)
    assert dial.dial == 1.0


def test_the_dial_does_not_rise_to_a_point_whose_cost_would_miss_the_objective() -> None:
    """At 0.6 a token takes 6.5 of 10 ms; at 0.8 it would take 8.7."""
    dial = controller()
    dial.update(0.0, Measured(milliseconds=10.0, wait=0.0, fill=0.0, occupancy=0.2))
    for tick in range(1, 1000):
        dial.update(float(tick), Measured(milliseconds=6.5, wait=0.0, fill=0.0, occupancy=0.2))
    assert dial.dial == 0.6


class Simulation:
    """A server with slots; a text takes its tokens times the cost of the dial. Arrivals are even."""

    def __init__(self, slots: int = 4, seconds: float = 1.0, most: int = 32) -> None:
        self.dial = Controller(POINTS, Objective(wait=2.0))
        self.slots, self.seconds, self.most = slots, seconds, most
        self.running: list[float] = []  # work left, in seconds of the full model
        self.waiting: deque[float] = deque()
        self.refused = 0
        self.moves: list[tuple[float, float]] = []

    def run(self, begin: float, end: float, rate: float, step: float = 0.05) -> None:
        arrived = 0.0
        for tick in range(round(begin / step), round(end / step)):
            now, cost = tick * step, self.dial.dial
            arrived += rate * step
            while arrived >= 1:
                arrived -= 1
                if len(self.waiting) < self.most:
                    self.waiting.append(self.seconds)
                else:
                    self.refused += 1
            self.running = [left for one in self.running if (left := one - step / cost) > 0]
            while self.waiting and len(self.running) < self.slots:
                self.running.append(self.waiting.popleft())
            wait = (
                (len(self.waiting) + 1) * self.seconds * cost / self.slots if len(self.running) == self.slots else 0.0
            )
            self.dial.update(now, Measured(None, wait, len(self.waiting) / self.most, len(self.running) / self.slots))
            if self.dial.dial != cost:
                self.moves.append((now, self.dial.dial))


def test_at_twice_the_load_of_the_full_model_no_request_is_refused_and_the_dial_settles() -> None:
    """The full model holds 4 texts a second; 8 come. 0.5 of the compute is what fits, so 0.4 or lower is needed."""
    server = Simulation()
    server.run(0, 300, rate=8)
    assert server.refused == 0
    assert len(server.waiting) < server.most
    late = [move for move in server.moves if move[0] > 150]
    assert len(late) <= 10, f"a try a minute, not a swing: {late}"
    server.run(300, 330, rate=0.5)
    assert server.dial.dial == 1.0


def test_the_same_load_with_the_dial_fixed_is_refused() -> None:
    server = Simulation()
    server.dial = Controller([Point(1.0, 1.0)], Objective())
    server.run(0, 60, rate=8)
    assert server.refused > 100


def test_a_load_that_the_full_model_holds_leaves_it_alone() -> None:
    server = Simulation()
    server.run(0, 60, rate=3)
    assert (server.moves, server.dial.dial) == ([], 1.0)


def test_the_costs_of_points_are_their_times_which_never_fall() -> None:
    curve = Curve.model_validate(CURVE)
    assert points_of(curve) == [Point(0.3, 1.0), Point(0.5, 2.0), Point(0.7, 2.0), Point(1.0, 4.0)]
    untimed = [point.model_copy(update={"milliseconds_per_token": None}) for point in curve.points]
    assert [one.cost for one in points_of(curve.model_copy(update={"points": untimed}))] == [0.3, 0.5, 0.7, 1.0]


def test_a_controller_without_points_is_refused() -> None:
    with pytest.raises(ValueError, match="found no points"):
        Controller([], Objective())
