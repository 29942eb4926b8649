"""Several sequence lengths in one run."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import RunConfig, make_config
from adaptive_lm.train.config.trainer import TrainerConfig
from adaptive_lm.train.data import Corpus
from adaptive_lm.train.loop.lengths import Lengths, Shape
from adaptive_lm.train.run.counters import Counters
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.system.progress import Progress

Make = Callable[..., RunConfig]


def lengths(*given: int, batch_size: int = 4, **trainer: Any) -> Lengths:
    return Lengths(TrainerConfig(sequence_lengths=given, batch_size=batch_size, **trainer), max(given))


def shapes(dealer: Lengths, steps: int) -> list[Shape]:
    """Return the shapes of the first steps of a run."""
    counters, found = Counters(), []
    for counters.step in range(steps):
        found.append(dealer.shape(counters, (counters.step + 0.5) / steps))
        dealer.advance(counters, found[-1])
    return found


def test_lengths_take_turns_and_every_step_has_as_many_tokens() -> None:
    found = shapes(lengths(16, 64, 32), 300)
    assert Counter(shape.length for shape in found) == {16: 100, 64: 100, 32: 100}
    assert {shape.batch_size * shape.length for shape in found} == {4 * 64}
    for length in (16, 32, 64):  # no window of a length is left out or read twice
        rows = 4 * 64 // length
        assert [shape.first for shape in found if shape.length == length] == list(range(0, 100 * rows, rows))


def test_a_length_that_does_not_divide_the_longest_has_at_most_its_tokens() -> None:
    assert {shape.length: shape.batch_size for shape in shapes(lengths(24, 64), 8)} == {64: 4, 24: 10}


def test_lengths_with_a_start_follow_one_another() -> None:
    found = shapes(lengths(16, 64, sequence_lengths_from=[0, 0.3]), 100)
    assert [shape.length for shape in found] == [16] * 30 + [64] * 70
    assert {shape.batch_size * shape.length for shape in found} == {4 * 64}
    assert [shape.first for shape in found[30:]] == list(range(0, 280, 4))


def test_a_batch_grows_at_every_length_and_leaves_no_window_out() -> None:
    """T16: the windows of a length follow each other whatever the batch; a part stays as large as it was."""
    grown = [{"from_step": 30, "batch_size": 6}, {"from_step": 60, "batch_size": 2}]
    found = shapes(lengths(16, 64, batch_schedule=grown, micro_batches=2), 90)
    for length in (16, 64):
        mine = [shape for shape in found if shape.length == length]
        assert [shape.batch_size * length // 64 for shape in mine] == [4] * 15 + [6] * 15 + [2] * 15
        assert [after.first - before.last for before, after in pairwise(mine)] == [1] * 44
        assert {shape.part for shape in mine} == {2 * 64 // length}


def test_a_single_length_is_that_of_every_step() -> None:
    one = Lengths(TrainerConfig(batch_size=5), 32)
    assert shapes(one, 8)[::7] == [(5, 32, 0, 5), (5, 32, 35, 5)]


def test_a_checkpoint_that_counted_no_windows_goes_on_where_it_stopped() -> None:
    """T23: such a run had batches of one size, so its step determines how far it read."""
    dealer = lengths(16, 64, 32)
    for step, shape in enumerate(shapes(dealer, 10)):
        assert dealer.shape(Counters(step=step), 0.0) == shape


def test_a_run_of_several_lengths_resumes_on_the_windows_it_would_have_read(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Corpus.batch
    drawn: list[np.ndarray[Any, Any]] = []

    def look(self: Corpus, *arguments: Any, **options: Any) -> Any:
        batch = draw(self, *arguments, **options)
        drawn.append(batch.ids)
        return batch

    monkeypatch.setattr(Corpus, "batch", look)
    config = tiny_config(trainer={"sequence_lengths": [8, 32]})
    training.begin(config, named_run("whole"), display=display)
    training.begin(config, named_run("parts"), stop_at=5, display=display)
    training.resume(named_run("parts"), display=display)
    assert {ids.shape for ids in drawn} == {(16, 8), (4, 32)}
    assert len({ids.tobytes() for ids in drawn[:12]}) == 12  # no step reads what another has read
    assert all(np.array_equal(one, other) for one, other in zip(drawn[:12], drawn[12:], strict=True))


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"trainer": {"sequence_lengths": [16, 512]}}, r"trainer\.sequence_lengths \(512\) is longer than"),
        ({"trainer": {"sequence_lengths": [16, 16]}}, "names a length twice"),
        ({"trainer": {"sequence_lengths": [16], "sequence_length": 8}}, "leave one of them out"),
        ({"trainer": {"sequence_lengths": [8, 16], "sequence_lengths_from": [0]}}, "a share of the run for each"),
        ({"trainer": {"sequence_lengths": [8, 16], "sequence_lengths_from": [0.1, 0.5]}}, "rising from 0"),
        ({"trainer": {"sequence_lengths_from": [0, 0.5]}}, "a share of the run for each"),
        ({"trainer": {"sequence_lengths": [1]}}, "greater than or equal to 2"),
        (
            {"trainer": {"sequence_lengths": [16]}, "data": {"sources": [{"path": "a.txt", "epochs": 2}]}},
            "an epoch has one length",
        ),
    ],
)
def test_lengths_that_make_no_sense_are_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_config(sections)
