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
        by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor, dict[str, Any]]]] = defaultdict(list)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                buffer = state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(buffer, group["momentum"])
                if self.placement is not None and weight.ndim == 2:
                    update = self.placement.whole(weight, update.bfloat16())
                by_shape[lying(update)].append((weight, update, group))
        for moves in by_shape.values():
            self._apply(moves)

    def _apply(self, moves: list[tuple[nn.Parameter, Tensor, dict[str, Any]]]) -> None:
        """Orthogonalises the updates of one shape in one batch and takes the step, each weight at its group's rate."""
        stacked = []
        for _, update, _ in moves:
            update = update.bfloat16()
            update = update.mT if update.shape[-2] > update.shape[-1] else update
            stacked.append(update.reshape(-1, *update.shape[-2:]))
        orthogonal = orthogonalize(torch.cat(stacked))
        parts = torch.split(orthogonal, [len(each) for each in stacked])
        for (weight, update, group), part in zip(moves, parts, strict=True):
            lr, shape = group["lr"], update.shape
            part = part.mT if shape[-2] > shape[-1] else part
            wide, narrow = (shape[0], shape[1]) if len(shape) == 2 else (shape[2], shape[1])
            part = part.reshape(shape)
            if self.placement is not None and weight.ndim == 2:
                part = self.placement.own(weight, part)
            weight.mul_(1 - lr * group["weight_decay"])
            weight.add_(part, alpha=-lr * math.sqrt(max(1.0, wide / narrow)))


def lying(weight: Tensor) -> tuple[int, int]:
    """The shape (rows, columns) in which a matrix is orthogonalised: never more rows than columns."""
    rows, columns = weight.shape[-2:]
    return min(rows, columns), max(rows, columns)


def orthogonalize(x: Tensor) -> Tensor:
    """(M, rows, columns) bfloat16, rows <= columns -> the nearest half-orthogonal matrices, roughly, same shape."""
    a, b, c = NEWTON_SCHULZ
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
