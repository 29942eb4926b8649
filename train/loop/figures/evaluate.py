"""The evaluation of a model on held-out text. B batch, T time, V vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from ...data.windows.batches import Batch
from ...model.transformer import Transformer
from ...parallel.world import World
from ...system.collectives import total
from ...system.device import autocast


@dataclass(frozen=True)
class Evaluation:
    """The loss and usage of a model on held-out text, at the present thresholds of its controllers."""

    loss: float
    """Mean cross-entropy in nats per scored token."""
    bits_per_byte: float
    usage: dict[str, float]
    """Means over the scored tokens: experts_per_token, layers_per_token and those of other choices of the model."""
    tokens: int
    """Scored tokens."""
    tasks: Mapping[str, Evaluation] = field(default_factory=dict)
    """The same for each task, by its name; empty without tasks."""

    @property
    def experts_per_token(self) -> float:
        """The mean number of experts that a token used."""
        return self.usage["experts_per_token"]

    @property
    def layers_per_token(self) -> float:
        """The mean number of layers that a token used."""
        return self.usage["layers_per_token"]

    @property
    def perplexity(self) -> float:
        """The exponential of the loss, bounded so that it is finite where the loss is."""
        return math.exp(min(self.loss, 700.0))


@torch.no_grad()
def evaluate(
    model: Transformer,
    windows: Iterable[Batch],
    batch_size: int,
    bytes_per_token: float,
    precision: str,
    stop: Callable[[], bool] = lambda: False,
    task: int | None = None,
) -> Evaluation | None:
    """Score the windows (B, T), B up to `batch_size`; nothing in the model or its controllers changes.

    The ranks share the rows of each window, so all must call it, with a `stop` that is true for all or for none. `task`
    is the number of the task of all windows, for gates per task.

    Returns:
        The evaluation; None if `stop()` became true or nothing was scored.
    """
    device, world = model.embedding.weight.device, World()
    rows = -(-batch_size // world.size) * world.size
    nats, tokens = torch.zeros((), dtype=torch.float64, device=device), 0
    usage: dict[str, float] = {}
    model.eval()
    try:
        # Compiling a block again for inference would take longer than it saves.
        with torch.compiler.set_stance("force_eager"):
            for window in windows:
                if stop():
                    return None
                count = int(window.loss_mask.sum())
                whole = (torch.from_numpy(part) for part in pad_rows(window, rows))
                ids, targets, scored = (world.rows(part).to(device) for part in whole)
                with autocast(device, precision):
                    out = model(ids, tasks=None if task is None else torch.full_like(ids[:, 0], task))
                losses = F.cross_entropy(
                    out.logits.float().flatten(0, 1), targets.flatten(), reduction="none"
                )  # (B*T,)
                if not count:
                    continue
                nats += (losses.double() * scored.flatten()).sum()
                for name, value in out.usage(scored).items():
                    usage[name] = usage.get(name, 0.0) + float(value) * count
                tokens += count
    finally:
        model.train()
    if not tokens:
        return None
    loss = float(total(nats)[0]) / tokens
    return Evaluation(loss, loss / math.log(2) / bytes_per_token, {n: v / tokens for n, v in usage.items()}, tokens)


def over_tasks(tasks: Mapping[str, Evaluation], sizes: Mapping[str, int], bytes_per_token: float) -> Evaluation | None:
    """Combine the evaluations of tasks; None without any.

    Each counts by the size of its whole held-out text, however much of it was scored, so the result estimates the loss
    on all held-out text.

    Args:
        tasks: Name -> evaluation.
        sizes: Name -> scored tokens of its whole held-out text.
        bytes_per_token: Bytes of all held-out text per scored token.
    """
    if not tasks:
        return None
    whole = sum(sizes[name] for name in tasks)
    loss = sum(one.loss * sizes[name] for name, one in tasks.items()) / whole
    names = dict.fromkeys(key for one in tasks.values() for key in one.usage)
    usage = {key: sum(one.usage[key] * sizes[name] for name, one in tasks.items()) / whole for key in names}
    tokens = sum(one.tokens for one in tasks.values())
    return Evaluation(loss, loss / math.log(2) / bytes_per_token, usage, tokens, tasks)


def pad_rows(batch: Batch, rows: int) -> Batch:
    """Pad a batch with empty, unscored rows to `rows`, so that all batches of an evaluation have one shape."""
    missing = rows - len(batch.ids)
    if missing <= 0:
        return batch
    below = ((0, missing), (0, 0))
    return Batch(np.pad(batch.ids, below), np.pad(batch.targets, below), np.pad(batch.loss_mask, below))
