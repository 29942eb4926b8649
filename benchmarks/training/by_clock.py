"""The training of peers for a number of seconds: AdamW, as nanoGPT sets it up."""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn


def train_by_clock(
    model: nn.Module, ids: Tensor, loss_of: Callable[[Tensor, Tensor], Tensor], seconds: float, *, rate: float,
    second_beta: float, batch: int, length: int,
) -> int:  # fmt: skip
    """Train on random sequences of a text for a number of seconds; return the steps taken.

    Weight decay is 0.1 for matrices, gradients are clipped at 1. The rate rises over the first 5 % of the time, and
    falls along a cosine to a tenth.

    Args:
        model: In training mode.
        ids: The tokens of the text.
        loss_of: The loss of inputs (B, T) and their next tokens (B, T).
        seconds: Seconds by the clock.
        rate: The highest rate.
        second_beta: The second beta of AdamW; the first is 0.9.
        batch: Sequences of a step.
        length: Tokens of a sequence.
    """
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    rest = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, rate, (0.9, second_beta))
    began, steps = time.monotonic(), 0
    while (done := (time.monotonic() - began) / seconds) < 1:
        fall = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * max(0.0, done - 0.05) / 0.95))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, done / 0.05, fall)
        starts = torch.randint(len(ids) - length, (batch,))
        rows = torch.stack([ids[start : start + length + 1] for start in starts])
        loss_of(rows[:, :-1], rows[:, 1:]).backward()  # type: ignore[no-untyped-call]  # torch's own
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
    return steps
