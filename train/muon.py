"""Muon for matrices and for stacks of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .parallel.placement import Placement

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Keller Jordan, https://kellerjordan.github.io/posts/muon/)."""
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` that also takes stacks of matrices (E, in, out) and orthogonalises all of one shape at once.

        B <- lerp(B, G, 1 - momentum);  U = NS(lerp(G, B, momentum))
        W <- W (1 - lr decay) - lr sqrt(max(1, out / in)) U

    A 2-D weight is (out, in) as in nn.Linear, a 3-D one a stack of (in, out) as in the experts. The Newton-Schulz steps
    run in bfloat16. Groups only differ in their rates: weights of all groups share the batches of one shape. Judged in
    the tests by `torch.optim.Muon`, which takes 2-D weights one by one.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        placement: Placement | None = None,
    ) -> None:
        """`placement` where weights are split over ranks: a matrix is gathered and every rank orthogonalises all of it;
        a stack is not, since its matrices lie whole."""
        self.placement = placement
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for weight in group["params"]:
                assert weight.ndim in (2, 3), f"Muon takes matrices and stacks of them, not {tuple(weight.shape)}"

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # the trainer has no closure, so no loss
        assert closure is None
        by_shape: dict[torch.Size, list[tuple[nn.Parameter, Tensor, dict[str, Any]]]] = defaultdict(list)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                buffer = state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(buffer, group["momentum"]).bfloat16()
                if self.placement is not None and weight.ndim == 2:
                    update = self.placement.whole(weight, update)
                by_shape[update.shape[-2:]].append((weight, update, group))
        for moves in by_shape.values():
            self._apply(moves)

    def _apply(self, moves: list[tuple[nn.Parameter, Tensor, dict[str, Any]]]) -> None:
        """Orthogonalises the updates of one shape in one batch and takes the step, each weight at its group's rate."""
        stacked = [update.reshape(-1, *update.shape[-2:]) for _, update, _ in moves]
        orthogonal = orthogonalize(torch.cat(stacked))
        parts = torch.split(orthogonal, [len(each) for each in stacked])
        for (weight, update, group), part in zip(moves, parts, strict=True):
            lr, (rows, columns) = group["lr"], update.shape[-2:]
            wide, narrow = (rows, columns) if update.ndim == 2 else (columns, rows)
            part = part.reshape(update.shape)
            if self.placement is not None and weight.ndim == 2:
                part = self.placement.own(weight, part)
            weight.mul_(1 - lr * group["weight_decay"])
            weight.add_(part, alpha=-lr * math.sqrt(max(1.0, wide / narrow)))


def orthogonalize(x: Tensor) -> Tensor:
    """(M, rows, columns) bfloat16 -> the nearest half-orthogonal matrices, roughly, same shape.

        X <- X / |X|;  X <- (a + b X X^T + c (X X^T)^2) X, five times

    Tall matrices take X^T X from the right, which is the same and transposes nothing.
    """
    a, b, c = NEWTON_SCHULZ
    wide = x.shape[-2] <= x.shape[-1]
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = torch.bmm(x, x.mT) if wide else torch.bmm(x.mT, x)
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, factor, x, beta=a) if wide else torch.baddbmm(x, x, factor, beta=a)
    return x
