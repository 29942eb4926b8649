"""Sampling by learning progress: slopes and shares by hand, and what a checkpoint keeps of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adaptive_lm.train.data import Corpus, DataConfig, TokenizerConfig, prepare
from adaptive_lm.train.loop.learning_progress import LearningProgress, shares, slope


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[[], Corpus]:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name * 3_000)

    def make() -> Corpus:
        config = DataConfig.model_validate({
            "dir": str(tmp_path), "cache_dir": str(tmp_path / "cache"),
            "tasks": [{"name": name, "sources": [f"{name}.txt"]} for name in "ab"],
            "sampling": {"by": "progress", "every": 2, "window": 3, "floor": 0.2},
        })  # fmt: skip
        return prepare(config, TokenizerConfig(kind="bytes"), seed=0, log=lambda _: None)

    return make


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], None), ([2.0], None), ([None, 2.0, None], None), ([3.0, 2.0, 1.0], -1.0), ([1.0, None, 3.0], 1.0),
     ([1.0, 1.0, 4.0], 1.5)],
)  # fmt: skip
def test_a_slope_is_that_of_the_least_squares_line(values: list[float | None], expected: float | None) -> None:
    assert slope(values) == expected


def test_shares_follow_the_size_of_the_slope_above_a_floor() -> None:
    assert shares([0.5, 0.5], [-3.0, 1.0], 0.2) == pytest.approx([0.1 + 0.6, 0.1 + 0.2])
    assert shares([0.9, 0.1], [0.0, 1.0], 0.5) == pytest.approx([0.45, 0.55])
    assert shares([0.9, 0.1], [-1.0, 1.0], 1.0) == [0.9, 0.1]
    assert shares([0.9, 0.1], [0.0, 0.0], 0.2) == [0.9, 0.1], "nothing moves"
    assert shares([0.9, 0.1], [None, 1.0], 0.2) == [0.9, 0.1], "not measured yet"


def drive(sampling: LearningProgress, steps: range) -> list[list[float]]:
    """Show a task whose loss falls and one whose loss stands; return the shares at each step."""
    seen = []
    for step in steps:
        sampling.adapt(step, lambda step=step: {16: 8 * step})  # type: ignore[misc]
        seen.append(sampling.corpus.shares())
        sampling.observe([100 * (5 - 0.1 * step), 300.0], [100, 100])
    return seen


def test_the_task_that_learns_gets_more_windows(corpus: Callable[[], Corpus]) -> None:
    seen = drive(LearningProgress(corpus()), range(12))
    assert seen[:4] == [seen[0]] * 4, "one mean has no slope"
    assert seen[0] == pytest.approx([0.5, 0.5])
    assert seen[4] == pytest.approx([0.9, 0.1]), "the floor is left to the other"


def test_a_resumed_run_goes_on_with_the_same_shares_and_windows(corpus: Callable[[], Corpus]) -> None:
    whole = LearningProgress(corpus())
    expected = drive(whole, range(15))
    first = LearningProgress(corpus())
    before = drive(first, range(7))
    resumed = LearningProgress(corpus(), json.loads(json.dumps(first.state())))
    assert before + drive(resumed, range(7, 15)) == expected
    assert resumed.corpus.where(8 * 15, 8, 16) == whole.corpus.where(8 * 15, 8, 16)


def test_fixed_shares_have_no_state(tmp_path: Path, corpus: Callable[[], Corpus]) -> None:
    config = DataConfig(sources=(str(tmp_path / "a.txt"),), cache_dir=str(tmp_path / "cache"))
    sampling = LearningProgress(prepare(config, TokenizerConfig(kind="bytes"), seed=0, log=lambda _: None))
    assert not sampling.active
    assert sampling.state() is None
