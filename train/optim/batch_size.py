"""Batch sizes that change over a run, and their effect on the learning rate."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, model_validator

from ..system.section import Section

Rule = Literal["none", "linear", "sqrt"]


class BatchChange(Section):
    """A change of the batch size at some point of the run."""

    from_share: float | None = Field(None, gt=0, lt=1)
    """Share of the run, by steps or by the clock, at which this size begins; above 0 and below 1."""
    from_step: int | None = Field(None, ge=1, lt=2**63)
    """First step of this size, counted from 0, in place of a share; 1 or more."""
    batch_size: int = Field(ge=1, le=2**20)
    """Sequences per step from there on, over all ranks; 1 to 1,048,576."""

    @model_validator(mode="after")
    def _once(self) -> Self:
        if (self.from_share is None) == (self.from_step is None):
            raise ValueError("a change of the batch needs one of from_share and from_step, as in {from_share: 0.5}")
        return self

    def reached(self, step: int, done: float) -> bool:
        """Return whether it is in force at step `step` (0, 1, ...), at progress `done` (0..1) of the run."""
        return done >= self.from_share if self.from_share is not None else step >= (self.from_step or 0)


def check_changes(changes: Sequence[BatchChange]) -> None:
    """Check that the changes follow each other, all by shares or all by steps.

    Raises:
        ValueError: they do not.
    """
    if len({each.from_share is None for each in changes}) > 1:
        raise ValueError("batch_schedule counts some changes in shares and some in steps; use one for all")
    for before, after in pairwise(changes):
        if (before.from_share or before.from_step or 0) >= (after.from_share or after.from_step or 0):
            late = after.model_dump(exclude_none=True)
            raise ValueError(f"batch_schedule does not rise: {late} comes too late; sort the changes")


def batch_size_at(first: int, changes: Sequence[BatchChange], step: int, done: float) -> int:
    """Return the sequences of step `step` (0, 1, ...) at progress `done` (0..1); `first` is the size before changes."""
    return next((each.batch_size for each in reversed(changes) if each.reached(step, done)), first)


def sequences_between(first: int, changes: Sequence[BatchChange], step: int, steps: int) -> int:
    """Count the sequences of the steps from `step` on, in a run of `steps` steps."""
    total, size, begun = 0, first, 0
    for each in changes:
        begins = each.from_step if each.from_share is None else shares_begin(each.from_share, steps)
        assert begins is not None
        begins = min(begins, steps)
        total += size * max(0, begins - max(begun, step))
        begun, size = max(begun, begins), each.batch_size
    return total + size * max(0, steps - max(begun, step))


def shares_begin(share: float, steps: int) -> int:
    """Return the first of `steps` steps whose middle is at `share` of the run or later."""
    step = max(0, int(share * steps) - 1)
    while step < steps and (step + 0.5) / steps < share:
        step += 1
    return step


def steps_for(sequences: int, first: int, changes: Sequence[BatchChange]) -> int:
    """Return the fewest steps with which a run has at least `sequences` sequences."""
    sizes = [first, *(each.batch_size for each in changes)]
    low, high = 0, -(-sequences // min(sizes))
    while low < high:
        middle = (low + high) // 2
        if sequences_between(first, changes, 0, middle) >= sequences:
            high = middle
        else:
            low = middle + 1
    return low


def rate_factor(rule: Rule, batch_size: int, first: int) -> float:
    """Return the factor on every learning rate when a batch of `batch_size` replaces one of `first`.

    - `linear`: for SGD, as long as the batch is far below the noise scale (Goyal et al. 2017, arXiv 1706.02677).
    - `sqrt`: for AdamW and Muon, whose steps do not grow with the gradient, and SGD with large noise: it keeps the
      variance of the update (Krizhevsky 2014, arXiv 1404.5997; for Adam, Malladi et al. 2022, arXiv
      2205.10287, who also change the betas, which we do not).
    - `none`: the larger batch replaces a lower rate (Smith et al. 2017, arXiv 1711.00489).
    """
    ratio = batch_size / first
    return {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[rule]
