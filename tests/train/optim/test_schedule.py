"""Learning rate and sparsity over a run."""

import itertools
from typing import Any

import pytest

from adaptive_lm.train.optim.schedule import (
    ScheduleConfig,
    WarmUp,
    drawn_sparsity,
    place_in_cycle,
    progress,
    scheduled_sparsity,
    warm_up,
)
from adaptive_lm.train.optim.schedule import multiplier as multiplier_when


def multiplier(config: ScheduleConfig, done: float, warm: WarmUp | None = None) -> float:
    return multiplier_when(config, done, warm or warm_up(config, done))


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


@pytest.mark.parametrize("kind", ["wsd", "cosine", "constant", "sgdr"])
def test_every_step_moves_the_weights(kind: str) -> None:
    rates = curve(ScheduleConfig.model_validate({"kind": kind}), 300)
    assert all(0 < rate <= 1 for rate in rates)
    assert multiplier(ScheduleConfig.model_validate({"kind": kind}), progress(0, None, 0.0, 60.0)) > 0


def test_without_steps_the_clock_decides_and_with_both_the_further_one() -> None:
    assert progress(5, None, 30.0, 120.0) == 0.25
    assert progress(49, 100, 30.0, 120.0) == pytest.approx(0.495)
    assert progress(9, 100, 60.0, 120.0) == 0.5
    assert progress(9, 100, 240.0, 120.0) == 1.0


def test_an_exponential_warm_up_rises_by_equal_factors_to_the_peak() -> None:
    config = ScheduleConfig(kind="constant", warmup="exponential", warmup_share=0.3)
    rates = [multiplier(config, done) for done in (0.0, 0.1, 0.2, 0.3)]
    assert rates == pytest.approx([1e-3, 1e-2, 1e-1, 1.0])


def test_sgdr_falls_as_a_cosine_and_starts_again_each_cycle_longer() -> None:
    """Cycles of 1/7, 2/7 and 4/7 of the run: arXiv 1608.03983, eq. 5 with T_mult 2."""
    config = ScheduleConfig(kind="sgdr", warmup_share=0.0)
    rates = curve(config, 700)
    restarts = [step for step in range(1, 700) if rates[step] > rates[step - 1]]
    assert restarts == [100, 300]
    assert rates[0] == pytest.approx(1.0, abs=1e-3)
    assert (rates[50], rates[200], rates[500]) == pytest.approx((0.5, 0.5, 0.5), abs=0.01)
    assert max(rates[99], rates[299], rates[699]) < 1e-3


def test_sgdr_begins_after_the_warm_up_and_falls_to_the_final_share() -> None:
    config = ScheduleConfig(kind="sgdr", warmup_share=0.2, restart_period=0.5, restart_multiplier=1.0, final_share=0.1)
    assert multiplier(config, 0.1) == pytest.approx(0.5)
    assert multiplier(config, 0.2) == pytest.approx(1.0)
    assert multiplier(config, 0.59999) == pytest.approx(0.1, abs=1e-3)
    assert multiplier(config, 0.6) == pytest.approx(1.0)
    assert multiplier(config, 1.0) == pytest.approx(0.1)


def test_cycles_that_shrink_come_to_an_end() -> None:
    assert place_in_cycle(0.25, 0.5, 0.5) == pytest.approx(0.5)
    assert place_in_cycle(0.875, 0.5, 0.5) == pytest.approx(0.0)
    assert place_in_cycle(0.9999, 0.4, 0.1) == 1.0  # 0.4 + 0.04 + 0.004 is all there is


def test_the_model_is_dense_then_sparser_in_a_line_then_as_configured() -> None:
    config = ScheduleConfig(dense_share=0.2, sparsify_share=0.4)
    sparsities = [scheduled_sparsity(config, done) for done in (0.0, 0.19, 0.2, 0.3, 0.5, 0.6, 1.0)]
    assert sparsities == pytest.approx([0, 0, 0, 0.25, 0.75, 1, 1])
    assert scheduled_sparsity(ScheduleConfig(dense_share=0.5), 0.5) == 1.0  # without a line it is a step
    assert scheduled_sparsity(ScheduleConfig(), 0.0) == 1.0


def test_random_sparsity_is_even_between_its_bounds_and_a_function_of_seed_and_step() -> None:
    config = ScheduleConfig(random_sparsity=(0.5, 1.5))
    draws = [drawn_sparsity(config, 0.3, 7, step) for step in range(4000)]
    assert 0.5 <= min(draws) < 0.51
    assert 1.49 < max(draws) <= 1.5
    assert sum(draws) / 4000 == pytest.approx(1.0, abs=0.02)
    assert abs(sum((a - 1) * (b - 1) for a, b in itertools.pairwise(draws)) / 4000) < 0.005  # neighbours are strangers
    assert draws[100:110] == [drawn_sparsity(config, 0.3, 7, step) for step in range(100, 110)]
    assert draws[:10] != [drawn_sparsity(config, 0.3, 8, step) for step in range(10)]


def test_the_draw_multiplies_what_is_scheduled() -> None:
    config = ScheduleConfig(dense_share=0.2, sparsify_share=0.4, random_sparsity=(2.0, 2.0))
    assert [drawn_sparsity(config, done, 0, 5) for done in (0.1, 0.3, 0.9)] == pytest.approx([0.0, 0.5, 2.0])


def test_a_cosine_begins_where_the_warm_up_ended_whatever_counted_it() -> None:
    config = ScheduleConfig(kind="cosine", warmup_steps=7)
    assert multiplier(config, 0.1, WarmUp(0.25, 0.0)) == 0.25
    assert multiplier(config, 0.2, WarmUp(1.0, 0.2)) == 1.0
    assert multiplier(config, 0.6, WarmUp(1.0, 0.2)) == pytest.approx(0.5)


def test_a_warm_up_is_counted_in_one_way_and_a_share_is_the_one_not_named() -> None:
    assert ScheduleConfig().warmup_share == 0.03
    counted = ScheduleConfig(warmup_tokens=4096)
    assert (counted.warmup_share, counted.warmup_tokens) == (None, 4096)
    assert ScheduleConfig.model_validate(counted.model_dump()) == counted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"warmup_share": 0.1, "warmup_steps": 5}, r"warmup_share \(0.1\) and warmup_steps \(5\).*warmup_share=null"),
        ({"warmup_epochs": 0}, "greater than 0"),
        ({"dense_share": 0.7, "sparsify_share": 0.4}, "together more than the whole run"),
        ({"random_sparsity": (1.5, 0.5)}, "the smaller first"),
        ({"random_sparsity": (-0.1, 0.5)}, "two numbers from 0 up"),
        ({"random_sparsity": (0.0, float("inf"))}, "a finite number"),
        ({"kind": "sgdr", "restart_period": 0.45, "restart_multiplier": 1}, "off at 22%.*a period of 0.5 fits"),
        ({"kind": "sgdr", "restart_period": 0.3, "restart_multiplier": 2}, "a period of 0.333333 fits"),
        ({"restart_period": 0.0}, "greater than or equal to 0.001"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleConfig.model_validate(given)
