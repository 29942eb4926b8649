"""The path of least loss, on costs and losses with known formulas."""

import itertools

import pytest

from adaptive_lm.runtime.calibration.curve_points import computes
from adaptive_lm.runtime.calibration.mechanisms import Setting
from adaptive_lm.runtime.calibration.search import CLOSE, NOTCHES, Measured, path, reach

PRICE = (0.5, 0.3)  # what each of two mechanisms can save of the cost


def cost_of(setting: Setting) -> float:
    return 1 - sum(price * x for price, x in zip(PRICE, setting, strict=True))


def measure(setting: Setting) -> Measured:
    """Return losses that grow faster and faster for the first mechanism, and evenly for the second."""
    a, b = setting
    return Measured(setting, cost_of(setting), 2 + a**2 + 0.4 * b)


def whole(measured: object = measure, least: float = 0.25) -> list[Measured]:
    return list(path(measured, 2, least))[-1]  # type: ignore[arg-type]


def test_every_coordinate_only_rises_and_cost_only_falls() -> None:
    steps = whole()
    assert steps[0].setting == (0, 0)
    for before, after in itertools.pairwise(steps):
        assert all(b <= a for b, a in zip(before.setting, after.setting, strict=True))
        assert after.cost < before.cost
    assert steps[-1].cost <= 0.25


def test_the_path_is_the_best_of_all_settings_at_its_costs() -> None:
    grid = [measure((a / NOTCHES, b / NOTCHES)) for a in range(NOTCHES + 1) for b in range(NOTCHES + 1)]
    for step in whole():
        best = min(one.loss for one in grid if one.cost <= step.cost + 1e-9)
        assert step.loss <= best + 0.02, "a notch of the dearer mechanism loses about as much"


def test_a_first_notch_that_saves_nothing_hides_no_second_one_that_does() -> None:
    def late(setting: Setting) -> Measured:
        a, b = setting
        saved = 0.6 * max(0.0, a - 1.5 / NOTCHES) + 0.3 * b
        return Measured(setting, 1 - saved, 2 + 0.1 * a + b)

    steps = whole(late, 0.5)
    assert steps[1].setting[0] > 0
    assert steps[1].setting[1] == 0


def test_the_walk_ends_where_nothing_saves_more() -> None:
    steps = whole(lambda setting: Measured(setting, max(cost_of(setting), 0.6), 2.0), 0.25)
    assert steps[-1].cost == 0.6


def test_neighbouring_moves_are_exchanged_where_that_is_better() -> None:
    def fooled(setting: Setting) -> Measured:
        """Return losses that make the first notch of the second mechanism better after the first mechanism."""
        a, b = setting
        trap = 0.5 if b and not a else 0.0
        return Measured(setting, cost_of(setting), 2 + a + 0.4 * b + trap)

    steps = [fooled(s) for s in ((0.0, 0.0), (0.0, 0.25), (0.25, 0.25))]
    from adaptive_lm.runtime.calibration.search import _exchanged

    assert _exchanged(fooled, steps)[1].setting == (0.25, 0.0)
    assert _exchanged(measure, [measure(one.setting) for one in steps])[1].setting != (0.0, 0.25)


def test_the_walk_itself_ends_with_the_exchange() -> None:
    """The second mechanism saves a little at one notch, and spoils the first, which saves much for as little."""

    def spoils(setting: Setting) -> Measured:
        a, b = setting[0] * NOTCHES, min(setting[1] * NOTCHES, 1)
        both = 0.8 if a and b else 0.0
        return Measured(setting, 1 - 0.2 * a - 0.02 * b, 2 + 0.22 * min(a, 1) + 3 * max(a - 1, 0) + 0.02 * b + both)

    steps = whole(spoils, 0.79)
    assert [step.setting for step in steps] == [(0, 0), (1 / NOTCHES, 0), (1 / NOTCHES, 1 / NOTCHES)]


@pytest.mark.parametrize("asked", [0.999, 0.9, 0.61, 0.5, 0.31])
def test_an_asked_cost_is_reached_from_below_and_on_the_path(asked: float) -> None:
    steps = whole()
    setting = reach(cost_of, steps, asked)
    assert asked - CLOSE <= cost_of(setting) <= asked + CLOSE
    after = next(step for step in steps if step.cost <= asked)
    before = steps[steps.index(after) - 1]
    assert all(b <= x <= a for b, x, a in zip(before.setting, setting, after.setting, strict=True))


def test_a_cost_that_jumps_is_reached_as_near_as_it_can_from_below() -> None:
    def jumps(setting: Setting) -> float:
        return 1.0 if setting[0] < 0.5 else 0.4 - 0.1 * setting[0]

    steps = [Measured((x, 0.0), jumps((x, 0.0)), 2.0) for x in (0.0, 1.0)]
    setting = reach(jumps, steps, 0.9)
    assert jumps(setting) <= 0.9
    assert setting[0] < 0.6


def test_less_than_the_path_holds_is_its_end() -> None:
    steps = whole()
    assert reach(cost_of, steps, 0.01) == steps[-1].setting


@pytest.mark.parametrize(("least", "most"), [(0.25, 1.0), (0.2834, 1.0), (0.6, 0.93), (0.95, 0.98)])
def test_ten_computes_rise_from_the_least_to_everything(least: float, most: float) -> None:
    found = computes(least, most)
    assert len(found) == len(set(found)) == 10
    assert found == sorted(found)
    assert least <= found[0] < least + 0.001
    assert found[-1] == 1
    assert found[-2] < most
