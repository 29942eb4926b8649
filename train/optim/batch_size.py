"""How many sequences a step has: a batch that changes over a run, and the learning rate that goes with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, model_validator

from ..system.section import Section

Rule = Literal["none", "linear", "sqrt"]


class BatchChange(Section):
    """From when on a batch has how many sequences."""

    from_share: float | None = Field(None, gt=0, lt=1)
    """Of the run, by steps or by the clock."""
    from_step: int | None = Field(None, ge=1)
    """In place of a share: the first step (0, 1, ...) of this size."""
    batch_size: int = Field(ge=1)

    @model_validator(mode="after")
    def _once(self) -> Self:
        if (self.from_share is None) == (self.from_step is None):
            raise ValueError("a change of the batch needs one of from_share and from_step, as in {from_share: 0.5}")
        return self

    def reached(self, step: int, done: float) -> bool:
        """Whether it is in force in step `step` (0, 1, ...), which stands at `done` (0..1) of the run."""
        return done >= self.from_share if self.from_share is not None else step >= (self.from_step or 0)


def check_changes(changes: Sequence[BatchChange]) -> None:
    """Raises ValueError unless the changes follow each other, all by shares or all by steps."""
    if len({each.from_share is None for each in changes}) > 1:
        raise ValueError("batch_schedule counts some changes in shares and some in steps; use one for all")
    for before, after in pairwise(changes):
        if (before.from_share or before.from_step or 0) >= (after.from_share or after.from_step or 0):
            raise ValueError(f"batch_schedule does not rise: {after.model_dump(exclude_none=True)} comes too late")


def batch_size_at(first: int, changes: Sequence[BatchChange], step: int, done: float) -> int:
    """Sequences of step `step` (0, 1, ...) at `done` (0..1) of the run; `first` is the size before any change."""
    return next((each.batch_size for each in reversed(changes) if each.reached(step, done)), first)


def sequences_between(first: int, changes: Sequence[BatchChange], step: int, steps: int) -> int:
    """Sequences of the steps from `step` on of a run of `steps` steps."""
    total, size, begun = 0, first, 0
    for each in changes:
        begins = each.from_step if each.from_share is None else shares_begin(each.from_share, steps)
        assert begins is not None
        begins = min(begins, steps)
        total += size * max(0, begins - max(begun, step))
        begun, size = max(begun, begins), each.batch_size
    return total + size * max(0, steps - max(begun, step))


def shares_begin(share: float, steps: int) -> int:
    """The first of `steps` steps whose middle stands at `share` of the run."""
    step = max(0, int(share * steps) - 1)
    while step < steps and (step + 0.5) / steps < share:
        step += 1
    return step


def steps_for(sequences: int, first: int, changes: Sequence[BatchChange]) -> int:
    """The fewest steps of a run that has at least so many sequences."""
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
    """The factor on every learning rate where a batch of `batch_size` takes the place of one of `first`.

    - `linear`: SGD, as long as the batch is far below the noise scale (Goyal et al. 2017, arXiv 1706.02677).
    - `sqrt`: AdamW and Muon, whose steps do not grow with the gradient, and SGD with large noise: it keeps the variance
      of the update (Krizhevsky 2014, arXiv 1404.5997; for Adam, Malladi et al. 2022, arXiv 2205.10287, who move the
      betas as well, which we do not).
    - `none`: a larger batch is to do what a lower rate would (Smith et al. 2017, arXiv 1711.00489).
    """
    ratio = batch_size / first
    return {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[rule]
