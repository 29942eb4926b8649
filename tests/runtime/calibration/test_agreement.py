"""CALM's bound by Learn then Test: the exact binomial test, the fixed order, and that it keeps its confidence."""

import math
from typing import Any

import numpy as np
import pytest

from adaptive_lm.runtime.calibration.agreement import CONFIDENCE, GRID, Compared, agreement_bounds, p_value


@pytest.mark.parametrize(("different", "tokens", "rate"), [(0, 10, 0.1), (3, 20, 0.1), (7, 50, 0.2), (50, 50, 0.3)])
def test_the_p_value_is_the_sum_of_the_binomial(different: int, tokens: int, rate: float) -> None:
    by_hand = sum(math.comb(tokens, k) * rate**k * (1 - rate) ** (tokens - k) for k in range(different + 1))
    assert p_value(different, tokens, rate) == pytest.approx(min(by_hand, 1), rel=1e-9)


def test_the_p_value_of_many_tokens_is_no_overflow() -> None:
    assert p_value(400, 8192, 0.05) == pytest.approx(0.333, abs=0.02)  # about the middle: 410 are expected
    assert p_value(0, 10**6, 0.5) == 0


def compared(rate: float, threshold: float, tokens: int = 8000) -> Compared:
    return Compared(tokens, round(tokens * rate * (1 - threshold)), 2 + threshold)


def test_the_least_threshold_that_passes_is_taken_for_each_share() -> None:
    found = agreement_bounds(lambda threshold: compared(0.2, threshold), (0.99, 0.9))
    assert [one.share for one in found] == [0.9, 0.99]
    for one in found:
        lower = GRID[GRID.index(one.exit_threshold) + 1]
        assert p_value(one.compared.different, 8000, 1 - one.share) <= 1 - CONFIDENCE
        assert p_value(compared(0.2, lower).different, 8000, 1 - one.share) > 1 - CONFIDENCE
    assert found[0].exit_threshold < found[1].exit_threshold


def test_the_first_failure_ends_the_walk_whatever_comes_after() -> None:
    """Else each further test would need a correction for their number."""
    lucky = {0.96: 0.5}
    found = agreement_bounds(lambda threshold: Compared(8000, round(8000 * lucky.get(threshold, 0)), 2), (0.9,))
    assert found[0].exit_threshold == 0.98


def test_no_bound_passes_and_no_token_leaves() -> None:
    found = agreement_bounds(lambda threshold: Compared(100, 0 if threshold == 1 else 50, 2), (0.9,))
    assert found[0].exit_threshold == 1
    assert found[0].compared.different == 0


def test_a_few_tokens_that_all_agree_prove_little() -> None:
    """0 of 28 does not show 90 % at confidence 0.95, 0 of 29 does: 0.9^29 = 0.047."""
    assert agreement_bounds(lambda threshold: Compared(28, 0, 2), (0.9,))[0].exit_threshold == 1
    assert agreement_bounds(lambda threshold: Compared(29, 0, 2), (0.9,))[0].exit_threshold == GRID[-1]


def test_the_bound_is_broken_no_more_often_than_the_confidence_allows() -> None:
    random = np.random.default_rng(3)
    broken = 0
    for _ in range(400):
        draws = random.random(2000)  # a token differs below a threshold of its own

        def compare(threshold: float, draws: Any = draws) -> Compared:
            return Compared(2000, int((draws < 0.3 * (1 - threshold)).sum()), 2)

        (bound,) = agreement_bounds(compare, (0.9,))
        broken += 0.3 * (1 - bound.exit_threshold) > 0.1
    assert broken / 400 <= 1 - CONFIDENCE + 0.02


def test_each_threshold_is_measured_once() -> None:
    seen: list[float] = []

    def compare(threshold: float) -> Compared:
        seen.append(threshold)
        return compared(0.2, threshold)

    agreement_bounds(compare, (0.9, 0.95, 0.99))
    assert len(seen) == len(set(seen))
    assert seen == sorted(seen, reverse=True)
