"""The learning rate over a run."""

import pytest

from adaptive_lm.train.schedule import ScheduleConfig, multiplier, progress


def curve(config: ScheduleConfig, steps: int) -> list[float]:
    return [multiplier(config, progress(step, steps)) for step in range(steps)]


def test_wsd_warms_up_stays_and_falls_in_a_line_to_almost_nothing() -> None:
    rates = curve(ScheduleConfig(kind="wsd", warmup_share=0.1, decay_share=0.5), 100)
    assert rates[0] == pytest.approx(0.05)
    assert rates[10:50] == [1.0] * 40
    assert rates[50] == pytest.approx(0.99)
    assert rates[75] - rates[76] == pytest.approx(0.02)
    assert rates[-1] == pytest.approx(0.01)


def test_cosine_falls_from_the_warm_up_to_the_final_share() -> None:
    config = ScheduleConfig(kind="cosine", warmup_share=0.0, final_share=0.1)
    assert multiplier(config, 0.0) == pytest.approx(1.0)
    assert multiplier(config, 0.5) == pytest.approx(0.55)
    assert multiplier(config, 1.0) == pytest.approx(0.1)


def test_constant_is_constant_after_the_warm_up() -> None:
    assert set(curve(ScheduleConfig(kind="constant", warmup_share=0.1), 50)[5:]) == {1.0}


@pytest.mark.parametrize("kind", ["wsd", "cosine", "constant"])
def test_every_step_moves_the_weights(kind: str) -> None:
    rates = curve(ScheduleConfig.model_validate({"kind": kind}), 300)
    assert all(0 < rate <= 1 for rate in rates)
    assert multiplier(ScheduleConfig.model_validate({"kind": kind}), progress(0, None, 0.0, 60.0)) > 0


def test_without_steps_the_clock_decides_and_with_both_the_further_one() -> None:
    assert progress(5, None, 30.0, 120.0) == 0.25
    assert progress(49, 100, 30.0, 120.0) == pytest.approx(0.495)
    assert progress(9, 100, 60.0, 120.0) == 0.5
    assert progress(9, 100, 240.0, 120.0) == 1.0
