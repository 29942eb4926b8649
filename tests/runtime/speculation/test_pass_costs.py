"""The times of passes: medians of what was measured, estimates between and beyond."""

import pytest

from adaptive_lm.runtime.speculation.pass_costs import FORGET_PASSES, MAX_ROWS, PassCosts, typical_cost


def costs_of(**seconds: float) -> PassCosts:
    costs = PassCosts()
    for name, value in seconds.items():
        for _ in range(5):
            costs.add(int(name.removeprefix("r")), value)
    return costs


def test_without_a_measurement_there_is_no_curve() -> None:
    assert PassCosts().curve() == []


def test_from_plain_passes_alone_the_curve_is_the_typical_one() -> None:
    assert costs_of(r1=2.0).curve() == [0, *(2 * typical_cost(rows) for rows in range(1, MAX_ROWS + 1))]


def test_what_was_not_measured_lies_between_its_neighbours_or_follows_the_typical_shape() -> None:
    curve = costs_of(r1=1.0, r4=4.0).curve()
    assert curve[1:5] == pytest.approx([1, 2, 3, 4])
    assert curve[8] == pytest.approx(4 * typical_cost(8) / typical_cost(4))
    assert costs_of(r2=2.0).curve()[1] == pytest.approx(2 / typical_cost(2))


def test_the_curve_never_falls() -> None:
    curve = costs_of(r1=1.0, r2=3.0, r4=2.0, r8=2.5).curve()
    assert curve == sorted(curve)


def test_a_few_disturbed_passes_do_not_count() -> None:
    costs = costs_of(r1=1.0, r2=1.5)
    for _ in range(6):
        costs.add(1, 50.0)
    assert costs.curve()[1] == 1.0


@pytest.mark.parametrize("disturbed", [1, 2])
def test_the_first_measurement_of_a_number_of_rows_may_be_wrong(disturbed: int) -> None:
    costs = costs_of(r1=1.0)
    costs.add(2, 30.0)
    if disturbed == 2:
        costs.add(2, 1.2)
    assert costs.curve()[2] < 1.5


def test_more_rows_than_are_measured_are_ignored() -> None:
    costs = costs_of(r1=1.0)
    costs.add(MAX_ROWS + 1, 1e9)
    assert costs.curve()[MAX_ROWS] == pytest.approx(typical_cost(MAX_ROWS))


def test_a_curve_follows_a_machine_that_becomes_slower() -> None:
    costs = costs_of(r1=1.0)
    assert costs.curve()[1] == 1.0
    for _ in range(100):
        costs.add(1, 2.0)
    assert costs.curve()[1] == 2.0


def test_a_cost_that_nothing_confirms_is_forgotten() -> None:
    costs = costs_of(r1=1.0, r2=100.0)
    for _ in range(5 * FORGET_PASSES):
        costs.add(1, 1.0)
    assert costs.curve()[2] == pytest.approx(typical_cost(2))
