"""The guard: which steps are skipped (T30-T32)."""

import math
import random
from collections.abc import Iterator
from typing import Any

import pytest

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train.config.trainer import TrainerConfig
from adaptive_lm.train.loop.spike_guard import HISTORY, Guard
from adaptive_lm.train.optim.optimizer import OptimizerConfig


def usual(seed: int = 0) -> Iterator[tuple[float, float]]:
    """Draw losses around 3 and norms around 1, as in a training run."""
    generator = random.Random(seed)
    while True:
        yield generator.gauss(3.0, 0.1), math.exp(generator.gauss(0.0, 0.4))


def guard(steps: int = HISTORY, **trainer: Any) -> Guard:
    """Make a guard that has seen this many usual steps."""
    one = Guard(TrainerConfig(**trainer), OptimizerConfig())
    for _, (loss, norm) in zip(range(steps), usual(), strict=False):
        one.accept(loss, norm)
    return one


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_or_gradient_that_is_not_finite_is_always_a_problem(value: float) -> None:
    for one in (guard(0), guard(skip_spikes=False), guard()):
        assert one.check(value) == "the loss is not finite"
        assert one.check(3.0, value) == "the gradient is not finite"


def test_a_spike_of_the_loss_or_of_the_norm_is_a_problem() -> None:
    """T32."""
    one = guard()
    assert one.check(3.1, 1.2) is None
    assert "the loss 9 is a spike: beyond" in str(one.check(9.0))
    assert "the gradient norm 40 is a spike: beyond" in str(one.check(3.0, 40.0))


def test_spikes_can_be_accepted() -> None:
    assert guard(skip_spikes=False).check(9.0, 40.0) is None


def test_nothing_is_a_spike_before_there_is_a_history() -> None:
    assert guard(HISTORY - 1).check(1e9, 1e9) is None
    assert guard(HISTORY).check(1e9) is not None


def test_a_small_loss_or_gradient_is_never_a_spike() -> None:
    assert guard().check(0.0, 1e-9) is None


def test_a_long_usual_run_has_no_spikes() -> None:
    one = guard()
    for _, (loss, norm) in zip(range(20_000), usual(seed=1), strict=False):
        assert one.check(loss, norm) is None
        one.accept(loss, norm)


def test_a_run_that_hardly_moves_does_not_call_every_harder_batch_a_spike() -> None:
    one = Guard(TrainerConfig(), OptimizerConfig())
    for step in range(HISTORY):
        one.accept(0.2 + 1e-6 * step, 0.5)
    assert one.check(0.7, 0.5 * 4.4) is None  # far beyond six of its standard deviations
    assert one.check(0.9) is not None
    assert one.check(0.2, 0.5 * 4.6) is not None


def test_a_reset_guard_has_no_history() -> None:
    one = guard()
    one.reset()
    assert one.check(9.0, 40.0) is None


def test_a_step_with_nothing_to_learn_from_is_not_remembered() -> None:
    one = guard(0)
    one.accept(0.0, 0.0)
    assert one.state() == {"losses": [], "norms": [], "failed": []}


def test_a_guard_restored_from_its_state_decides_the_same() -> None:
    one = guard(150)
    twin = Guard(TrainerConfig(), OptimizerConfig(), one.state())
    edge = 3.0
    while one.check(edge) is None:
        edge += 1e-4
    assert twin.check(edge - 2e-4) is None
    assert twin.check(edge) == one.check(edge)
    assert twin.state() == one.state()


def test_the_last_of_too_many_in_a_row_ends_the_run_and_names_their_data() -> None:
    """T31."""
    one = guard(max_bad_steps=3)
    one.skip(7, "the loss is not finite", "a.txt windows 1-4")
    one.accept(3.0, 1.0)  # a step between: not in a row
    one.skip(9, "the loss is not finite", "a.txt windows 8-11")
    one.skip(10, "the loss 9 is a spike", "b.txt window 0")
    with pytest.raises(
        UserError, match=r"(?s)steps 9 to 11, 3 in a row.*of step 8.*windows 8-11.*b\.txt.*gone"
    ) as caught:
        one.skip(11, "the loss 9 is a spike", "gone")
    assert "windows 1-4" not in str(caught.value)
    assert "--set trainer.skip_spikes=false" in str(caught.value)
