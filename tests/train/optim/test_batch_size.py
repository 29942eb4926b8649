"""A batch that changes over a run: which windows it reads, how long the run is, and the learning rate with it."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptive_lm.contract.errors import UserError
from adaptive_lm.train import training
from adaptive_lm.train.config.run_config import RunConfig, make_config
from adaptive_lm.train.data import Corpus, prepare
from adaptive_lm.train.optim.batch_size import BatchChange, batch_size_at, rate_factor, sequences_between, steps_for
from adaptive_lm.train.optim.schedule import progress
from adaptive_lm.train.run.checkpoints.checkpoint import load_checkpoint
from adaptive_lm.train.run.folder import named_run
from adaptive_lm.train.run.metrics import read_metrics
from adaptive_lm.train.system.progress import Progress

Make = Callable[..., RunConfig]

SHARES = (BatchChange(from_share=0.31, batch_size=7), BatchChange(from_share=0.77, batch_size=16))
STEPS = (BatchChange(from_step=3, batch_size=7), BatchChange(from_step=11, batch_size=2))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """(first, sequences, length) of each batch that is drawn."""
    draw, batches = Corpus.batch, []

    def look(self: Corpus, first: int, batch_size: int, length: int) -> Any:
        batches.append((first, batch_size, length))
        return draw(self, first, batch_size, length)

    monkeypatch.setattr(Corpus, "batch", look)
    return batches


@pytest.mark.parametrize("changes", [SHARES, STEPS, ()], ids=["shares", "steps", "none"])
def test_the_sequences_of_a_run_are_the_sum_over_its_steps(changes: tuple[BatchChange, ...]) -> None:
    for steps in (1, 2, 5, 13, 100):
        sizes = [batch_size_at(4, changes, step, progress(step, steps)) for step in range(steps)]
        assert [sequences_between(4, changes, step, steps) for step in range(steps)] == [
            sum(sizes[step:]) for step in range(steps)
        ]
    for sequences in (1, 30, 31, 500):
        steps = steps_for(sequences, 4, changes)
        assert sequences_between(4, changes, 0, steps) >= sequences > sequences_between(4, changes, 0, steps - 1)


@pytest.mark.parametrize(("rule", "factor"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
def test_the_rate_follows_the_batch_by_its_rule(
    tiny_config: Make, folder: Path, display: Progress, rule: Any, factor: float
) -> None:
    """Linear: Goyal et al. 2017; square root: Krizhevsky 2014, Malladi et al. 2022."""
    assert rate_factor(rule, 32, 8) == factor
    config = tiny_config(
        trainer={"steps": 4, "batch_size": 2, "batch_schedule": [{"from_share": 0.5, "batch_size": 8}]},
        schedule={"kind": "constant", "warmup_share": 0, "batch_rate": rule},
    )
    training.begin(config, named_run("a"), display=display)
    records = read_metrics(Path("runs/a/metrics.jsonl"))
    assert [record["batch_size"] for record in records] == [2, 2, 8, 8]
    assert records[-1]["lr"] == pytest.approx(records[0]["lr"] * factor)


@pytest.mark.parametrize("lengths", [(), (8, 32)], ids=["one length", "two lengths"])
def test_a_growing_batch_reads_each_window_once_and_resumes_to_the_bit(
    tiny_config: Make, folder: Path, display: Progress, reads: list[tuple[int, int, int]], lengths: tuple[int, ...]
) -> None:
    """T13, T14, T16, T17: stopped in the step before a change, and in the one after the other."""
    trainer = {"batch_schedule": [{"from_share": 0.3, "batch_size": 6}, {"from_share": 0.7, "batch_size": 9}]}
    config = tiny_config(trainer={**trainer, "micro_batches": 2, "sequence_lengths": lengths})
    training.begin(config, named_run("whole"), display=display)
    whole = list(reads)
    for length in {length for *_, length in whole}:
        mine = [(first, rows) for first, rows, each in whole if each == length]
        assert mine[0][0] == 0
        assert all(first + rows == after for (first, rows), (after, _) in pairwise(mine))
    assert sum(rows * length for _, rows, length in whole) == 32 * (4 * 4 + 4 * 6 + 4 * 9)
    reads.clear()
    training.begin(config, named_run("parts"), stop_at=3, display=display)
    training.resume(named_run("parts"), stop_at=9, display=display)
    training.resume(named_run("parts"), display=display)
    assert reads == whole
    one, other = (load_checkpoint(Path("runs") / name) for name in ("whole", "parts"))
    assert all(torch.equal(one.model_state[name], value) for name, value in other.model_state.items())
    assert all(torch.equal(one.optimizer_state[name], value) for name, value in other.optimizer_state.items())


def test_a_larger_batch_passes_in_more_parts_of_the_same_size(
    tiny_config: Make, folder: Path, display: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[int] = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, given: (
            passed.append(len(given[0])) if type(module).__name__ == "Transformer" and module.training else None
        )
    )
    trainer = {"steps": 2, "micro_batches": 2, "batch_schedule": [{"from_step": 1, "batch_size": 9}]}
    try:
        training.begin(tiny_config(trainer=trainer), named_run("a"), display=display)
    finally:
        hook.remove()
    assert passed[:7] == [2, 2, 2, 2, 2, 2, 1]


def test_sources_with_epochs_end_when_they_are_read_whatever_the_batch(
    tiny_config: Make, text_file: Path, folder: Path, display: Progress, reads: list[tuple[int, int, int]]
) -> None:
    """Each stage has the whole schedule of the rate, in windows of its text."""
    config = tiny_config(
        data={"sources": [{"path": str(text_file), "epochs": 1}] * 2, "val": str(text_file)},
        trainer={"steps": None, "batch_schedule": [{"from_share": 0.4, "batch_size": 16}], "log_every": 1},
        schedule={"kind": "constant", "each_stage": True, "warmup_steps": 5},
    )
    outcome = training.begin(config, named_run("a"), display=display)
    records = read_metrics(Path("runs/a/metrics.jsonl"))
    corpus = prepare(config.data, config.tokenizer, seed=0, log=lambda _: None)
    windows = corpus.total_windows(32)
    assert windows is not None
    first, rows, _ = reads[outcome.step - 1]
    assert first < windows <= first + rows
    border = next(step for step, (first, rows, _) in enumerate(reads) if first + rows > windows / 2)
    rising = [record["step"] - 1 for record in records if record["warmup"] < 1]
    assert rising == [0, 1, 2, 3, 4, *range(border, border + 5)]
    places = [record["schedule_progress"] for record in records]
    assert all(a < b for a, b in pairwise(places[border:]))
    assert places[border - 1] > 0.9
    assert places[-1] > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{"batch_size": 8}], "needs one of from_share and from_step"),
        ([{"from_share": 0.5, "from_step": 3, "batch_size": 8}], "needs one of from_share and from_step"),
        ([{"from_share": 0.5, "batch_size": 8}, {"from_step": 3, "batch_size": 9}], "use one for all"),
        ([{"from_step": 5, "batch_size": 8}, {"from_step": 5, "batch_size": 9}], "does not rise"),
        ([{"from_share": 1.0, "batch_size": 8}], "less than 1"),
    ],
)
def test_changes_that_make_no_sense_are_refused(changes: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_config({"trainer": {"batch_schedule": changes}})
