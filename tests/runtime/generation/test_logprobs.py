"""Log-probabilities: those of the softmax by its definition, and the alternatives in order."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from support.cases import each

from adaptive_lm.runtime.generation.sampling.logprobs import most_probable_first, token_logprob


def by_definition(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    exact = logits.astype(np.float64) - float(logits.max())
    return np.asarray(exact - np.log(np.exp(exact).sum()))


@each("n", [1, 5, 64, 1000, 1300, 32000])
@each("scale", [3.0, 1e-3, 0.0, 1e4])
def test_they_are_those_of_the_softmax(n: int, scale: float) -> None:
    logits = (np.random.default_rng(n).normal(size=n) * scale).astype(np.float32)
    wanted = by_definition(logits)
    for token in {0, n // 2, n - 1, int(logits.argmax())}:
        score = token_logprob(logits, token, 20)
        assert score.logprob == pytest.approx(wanted[token], rel=1e-6, abs=1e-6)
        assert score.top_logprobs == pytest.approx({int(one): wanted[one] for one in ranking(logits)[:20]}, abs=1e-6)
        assert list(score.top_logprobs) == ranking(logits)[:20]


def ranking(logits: NDArray[np.float32]) -> list[int]:
    return [int(token) for token in np.argsort(-logits, kind="stable")]


@each("count", [0, 1, 2, 20])
@each("n", [1, 3, 63, 64, 65, 128, 1279, 1280, 5000])
def test_the_largest_come_first_and_of_equal_ones_the_lower_index(n: int, count: int) -> None:
    steps = np.round(np.random.default_rng(n).normal(size=n)).astype(np.float32)
    steps[n // 3] = -np.inf
    for logits in (steps, np.sort(steps), np.sort(steps)[::-1], np.zeros(n, np.float32)):
        assert list(most_probable_first(logits, count)) == ranking(logits)[:count]


def test_the_probabilities_of_all_alternatives_of_a_small_vocabulary_add_up_to_one() -> None:
    logits = np.random.default_rng(0).normal(size=20).astype(np.float32)
    assert sum(map(math.exp, token_logprob(logits, 0, 20).top_logprobs.values())) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_a_defect(bad: float) -> None:
    with pytest.raises(ArithmeticError, match="not finite"):
        token_logprob(np.float32([0, bad, 1]), 0, 0)
