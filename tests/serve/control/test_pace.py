"""What the measured pace says about waiting, by a scripted clock."""

import pytest

from adaptive_lm.serve.control.pace import Pace


def paced(passes: int = 100, seconds: float = 0.01, texts: int = 4) -> Pace:
    """Run `passes` that give each of `texts` a token."""
    pace = Pace()
    for number in range(passes):
        pace.passed((number + 1) * seconds, seconds, texts, decoding=texts, occupancy=texts / 8)
    return pace


def test_nothing_is_predicted_before_anything_is_measured() -> None:
    pace = Pace()
    assert pace.wait(1) is None
    assert pace.wait(0) == 0.0
    assert (pace.milliseconds_per_token, pace.seconds_of(10), pace.tokens_per_second(5.0)) == (None, 0.0, 0.0)


def test_waiting_is_the_texts_before_times_their_length_over_the_speed() -> None:
    pace = paced()
    pace.ended(50)
    assert pace.wait(1) == pytest.approx(50 / 400)
    assert pace.wait(8) == pytest.approx(8 * 50 / 400)
    for _ in range(200):
        pace.ended(10)
    assert pace.wait(1) == pytest.approx(10 / 400, rel=0.01)


def test_the_time_between_tokens_follows_the_passes() -> None:
    pace = paced(seconds=0.01)
    assert pace.milliseconds_per_token == pytest.approx(10)
    for number in range(200):
        pace.passed(1 + number * 0.03, 0.03, 4, decoding=4, occupancy=0.5)
    assert pace.milliseconds_per_token == pytest.approx(30, rel=0.01)
    assert pace.seconds_of(100) == pytest.approx(3, rel=0.01)


def test_drafts_that_were_right_make_tokens_faster_than_passes() -> None:
    pace = Pace()
    pace.passed(0.01, 0.01, 12, decoding=4, occupancy=0.5)
    assert pace.milliseconds_per_token == pytest.approx(10 / 3)


def test_the_throughput_is_that_of_the_last_seconds() -> None:
    pace = paced(passes=300, seconds=0.01)
    assert pace.tokens_per_second(3.0) == pytest.approx(1200 / 5)
    assert pace.tokens_per_second(6.0) == pytest.approx(800 / 5, rel=0.1)
    assert pace.tokens_per_second(60.0) == 0.0


def test_a_moved_dial_moves_the_prediction_before_it_is_measured() -> None:
    pace = paced()
    pace.ended(50)
    pace.dial_moved(0.5)
    assert pace.wait(1) == pytest.approx(50 / 800)
    assert pace.milliseconds_per_token == pytest.approx(5)
