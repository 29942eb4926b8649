"""Losses and usage of each task in one training step. B batch, T time, N = B*T tokens, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.tasks import Task
from ...model.output import ModelOutput
from ...system.collectives import total


class TaskFigures:
    """Sums over the scored tokens of each task in a step, equal on all ranks.

    Without named tasks it measures nothing and weights nothing.
    """

    def __init__(self, tasks: Sequence[Task], device: torch.device) -> None:
        self.names = [task.name for task in tasks if task.name]
        weights = [task.loss_weight for task in tasks]
        self._weights = None if set(weights) == {1.0} else torch.tensor(weights, device=device)  # (tasks,)
        self.reset()

    def reset(self) -> None:
        """Begin a step."""
        self.nats = [0.0] * len(self.names)
        """Sum of the cross-entropy of each task, without its loss weight."""
        self.tokens = [0] * len(self.names)
        """Scored tokens of each task."""
        self._usage: list[dict[str, float]] = [{} for _ in self.names]

    def weights(self, of_rows: Tensor) -> Tensor | None:
        """Return the loss weight of each sequence (B,), from its task (B,); None where all weights are 1."""
        return None if self._weights is None else self._weights[of_rows]

    @torch.no_grad()
    def add(self, out: ModelOutput, targets: Tensor, scored: Tensor, of_rows: Tensor) -> None:
        """Add the sequences of one forward pass.

        Args:
            out: The output of the model.
            targets: (B, T) int64.
            scored: (B, T) bool.
            of_rows: (B,) int64, the task of each sequence.
        """
        if not self.names:
            return
        losses = F.cross_entropy(out.logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        nats = (losses.double().view(scored.shape) * scored).sum(1)  # (B,)
        member = F.one_hot(of_rows, len(self.names)).double().t()  # (tasks, B)
        sums, counts = total(member @ nats, member @ scored.sum(1).double())  # (tasks,) each
        for task, (loss, count) in enumerate(zip(sums.tolist(), counts.tolist(), strict=True)):
            if not count:
                continue
            self.nats[task] += loss
            self.tokens[task] += int(count)
            usage = self._usage[task]
            for name, value in out.usage(scored & (of_rows == task)[:, None]).items():
                usage[name] = usage.get(name, 0.0) + float(value) * count

    def figures(self) -> dict[str, float]:
        """Return the means of the step under the names of metrics.jsonl; a task without a scored token has none."""
        figures = {}
        for name, nats, tokens, usage in zip(self.names, self.nats, self.tokens, self._usage, strict=True):
            if tokens:
                figures[f"loss/{name}"] = nats / tokens
                figures |= {f"{what}/{name}": value / tokens for what, value in usage.items()}
        return figures
