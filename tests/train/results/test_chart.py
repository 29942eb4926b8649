"""Curves drawn in characters."""

from adaptive_lm.train.results.chart import chart


def test_a_falling_curve_falls_from_the_upper_left_to_the_lower_right() -> None:
    lines = chart({"one": [(x, 40.0 - x) for x in range(41)]}, width=41, height=5)
    rows = [line.split("|")[1] for line in lines[:5]]
    columns = [[column for column, mark in enumerate(row) if mark == "a"] for row in rows]
    assert columns[0][0] == 0
    assert columns[-1][-1] == 40
    assert [column for row in columns for column in row] == list(
        range(41)
    )  # every point once, from the left to the right
    assert [line.split("|")[0].strip() for line in lines[:5]] == [
        "38",
        "",
        "",
        "",
        "0",
    ]  # without the highest twentieth
    assert lines[-1] == "a one"
    assert lines[-2].split() == ["0", "40"]


def test_curves_have_letters_and_a_star_where_they_meet() -> None:
    lines = chart({"up": [(0, 0), (1, 1), (2, 2)], "down": [(0, 2), (1, 1), (2, 0)], "none": []}, width=3, height=3)
    assert [line.split("|")[1] for line in lines[:3]] == ["b a", " *", "a b"]
    assert lines[-2:] == ["a up", "b down"]


def test_a_first_step_far_above_the_rest_does_not_flatten_it() -> None:
    lines = chart({"one": [(0, 1e6), *((x, 1 - x / 100) for x in range(1, 100))]}, width=100, height=10)
    assert all("a" in line for line in lines[:10])


def test_one_point_and_no_point_are_drawn() -> None:
    assert any("a" in line for line in chart({"one": [(5, 2.0)]})[:16])
    assert chart({"one": []}) == ["nothing was measured yet"]
