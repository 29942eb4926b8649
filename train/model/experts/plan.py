"""The rows that the experts compute. N tokens, D width, E experts, R rows = chosen pairs, padded per expert."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ROW_MULTIPLE = 64
"""Rows of an expert are padded to a multiple of this. oneDNN compiles a kernel for each new number of rows, and padding
leaves few different numbers (bf16 aten::mm 108 -> 23 ms)."""


class Plan(NamedTuple):
    """The row of each chosen pair: rows sorted by expert, the rows of each expert padded to a multiple.

    A padding row computes token 0; its result is never read, and its gradient is 0.
    """

    token: Tensor  # (R,) int64: the token of each row
    row: Tensor  # (pairs,) int64: the row of each pair, in order of token, then expert
    first: Tensor  # (N,) int64: where a token's pairs begin in `row`
    ends: Tensor  # (E,) int64 on the CPU: where each expert's rows end


def plan_rows(selected: Tensor, multiple: int) -> Plan:
    """Assign rows to the pairs of `selected` (N, E) bool."""
    rank = selected.cumsum(0)  # (N, E), from 1
    counts = selected.sum(0)  # not rank[-1], which fails where there is no token
    padded = (counts + multiple - 1) // multiple * multiple
    row = (rank + (padded.cumsum(0) - padded - 1))[selected]
    used = selected.sum(1)
    ends = padded.cumsum(0).cpu()
    token = torch.arange(len(used), device=used.device).repeat_interleave(used, output_size=len(row))
    rows = token.new_zeros(int(ends[-1])).index_copy_(0, row, token)
    return Plan(rows, row, used.cumsum(0) - used, ends)


def row_multiple(x: Tensor, onednn: bool) -> int:
    """Return the multiple to which the rows of an expert are padded; 1 where oneDNN does not multiply."""
    return ROW_MULTIPLE if x.device.type == "cpu" and (x.dtype == torch.bfloat16 or onednn) else 1


def spans_of(plan: Plan) -> Iterator[tuple[int, slice]]:
    """Yield each expert with its rows, in order."""
    ends = plan.ends.tolist()
    for expert, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        yield expert, slice(start, end)


def sum_by_token(rows: Tensor, plan: Plan, scale: Tensor | None = None) -> Tensor:
    """Sum the rows of each token's pairs: rows (R, D), scale (pairs,) in order of token -> (N, D)."""
    return F.embedding_bag(plan.row, rows, plan.first, mode="sum", per_sample_weights=scale)
