"""Muon for matrices and for stacks of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..parallel.placement import Placement

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Keller Jordan, https://kellerjordan.github.io/posts/muon/)."""
NEWTON_SCHULZ_STEPS = 5
GRAM_RATIO = 2.0
"""From this ratio r of the long side to the short one, two iterations on the Gram matrix take fewer products: 2 r + 5
units of short^3 multiplications instead of 4 r + 2."""
GRAM_SHORT = 128
"""Below this short side the Gram matrix saves nothing, and its few numbers do not average out their rounding."""
BATCH = 1 << 19
"""Numbers that are orthogonalised at once on a CPU: 1 MiB in bfloat16, which stays in the cache for a whole step."""


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` that also takes stacks of matrices (E, in, out) and orthogonalises many of one shape at once.

        B <- lerp(B, G, 1 - momentum);  U = NS(lerp(G, B, momentum))
        W <- W (1 - lr decay) - lr sqrt(max(1, out / in)) U

    A 2-D weight is (out, in) as in nn.Linear, a 3-D one a stack of (in, out) as in the experts. The Newton-Schulz steps
    run in bfloat16. Groups differ only in their rates: weights of all groups share the batches of one shape. The tests
    compare it with `torch.optim.Muon`, which takes 2-D weights one by one.

    The experts of a stack can take turns: a step moves one in `turns` of them, `turns` times as far, and the momentum
    of the others gathers their gradients. So a step orthogonalises about as many weights as a token uses.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". The turns are ours; Dion2
    (arXiv 2512.16928) orthogonalises some rows of each matrix per step instead.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        placement: Placement | None = None,
        steps: int = NEWTON_SCHULZ_STEPS,
        turns: int = 1,
    ) -> None:
        """Set up the groups of `params`.

        Args:
            params: weights or groups of them, matrices and stacks of matrices.
            lr: learning rate.
            weight_decay: decay of the weights, multiplied by `lr`.
            momentum: decay of the mean gradient per step.
            placement: where the weights are stored, if they are split over ranks. A split matrix is gathered and every
                rank orthogonalises all of it; a stack is not, since each of its matrices is whole on one rank.
            steps: iterations of Newton-Schulz.
            turns: steps after which every expert of a stack has moved once.
        """
        self.placement, self.steps, self.turns = placement, steps, turns
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for weight in group["params"]:
                assert weight.ndim in (2, 3), f"Muon takes matrices and stacks of them, not {tuple(weight.shape)}"

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # the trainer has no closure, so no loss
        """Take one step."""
        assert closure is None
        by_shape: dict[torch.Size, list[_Move]] = defaultdict(list)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                for move in self._moves(weight, group):
                    if self.placement is not None and self.placement.is_split(weight) and weight.ndim == 2:
                        # Now, and not in its batch: all ranks must gather in one order.
                        move = move._replace(whole=self.placement.whole(weight, move.update()[0])[None])
                    by_shape[move.matrix()].append(move)
        for moves in by_shape.values():
            for batch in _batches(moves):
                self._apply(batch)

    def _moves(self, weight: nn.Parameter, group: dict[str, Any]) -> Iterator[_Move]:
        """Return the moves of a weight in this step; the momentum of experts whose turn it is not is updated here."""
        assert weight.grad is not None
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        stack = (weight, weight.grad, state["momentum_buffer"])
        if weight.ndim == 2:
            yield from _split(weight, group, *(each[None] for each in stack))
            return
        step = int(state.get("turn", 0))
        state["turn"] = torch.tensor(step + 1)
        first = 0 if self.placement is None else self.placement.first_row(weight)
        for turn in range(self.turns):
            # Experts are counted over all ranks, so that ranks that share them move those that one process would.
            experts = slice((turn - step - first) % self.turns, None, self.turns)
            if turn == 0:
                yield from _split(weight, group, *(each[experts] for each in stack), distance=self.turns)
            else:
                stack[2][experts].lerp_(stack[1][experts], 1 - group["momentum"])

    def _apply(self, batch: Sequence[_Move]) -> None:
        """Orthogonalise updates of one shape at once and take the step, each weight at its group's rate."""
        updates = [move.update() for move in batch]
        orthogonal = orthogonalize(torch.cat(updates) if len(updates) > 1 else updates[0], self.steps)
        parts = torch.split(orthogonal, [len(each) for each in updates])
        for move, part in zip(batch, parts, strict=True):
            lr, (rows, columns) = move.group["lr"] * move.distance, part.shape[1:]
            wide, narrow = (rows, columns) if move.parameter.ndim == 2 else (columns, rows)
            if move.whole is not None:
                assert self.placement is not None
                part = self.placement.own(move.parameter, part[0])[None]
            move.weight.mul_(1 - lr * move.group["weight_decay"])
            move.weight.add_(part, alpha=-lr * math.sqrt(max(1.0, wide / narrow)))


class _Move(NamedTuple):
    """Matrices of one weight that are updated together, (M, rows, columns): one matrix, or some experts of a stack."""

    parameter: nn.Parameter
    group: dict[str, Any]
    weight: Tensor
    gradient: Tensor
    buffer: Tensor
    distance: int = 1
    """Steps that this one stands for: the rate is multiplied by it."""
    whole: Tensor | None = None
    """The update of all rows, if `weight` holds only some rows of a matrix."""

    def matrix(self) -> torch.Size:
        """Return the shape of one matrix."""
        return (self.gradient if self.whole is None else self.whole).shape[1:]

    def update(self) -> Tensor:
        """Update the momentum and return Nesterov's update in bfloat16, (M, rows, columns); call it once a step."""
        if self.whole is not None:
            return self.whole
        momentum = self.group["momentum"]
        self.buffer.lerp_(self.gradient, 1 - momentum)
        return self.gradient.lerp(self.buffer, momentum).bfloat16()


def _split(weight: nn.Parameter, group: dict[str, Any], *stacks: Tensor, distance: int = 1) -> Iterator[_Move]:
    """Split matrices, gradients and momenta of a weight, (M, rows, columns) each, into moves of at most one batch."""
    several = max(1, _numbers(weight) // weight.shape[-2:].numel())
    for matrices, gradients, momenta in zip(*(torch.split(each, several) for each in stacks), strict=True):
        if len(matrices):
            yield _Move(weight, group, matrices, gradients, momenta, distance)


def _batches(moves: Sequence[_Move]) -> Iterator[list[_Move]]:
    """Group moves of one shape into batches of about BATCH numbers, in their order."""
    batch: list[_Move] = []
    for move in moves:
        if batch and sum(each.gradient.numel() for each in [*batch, move]) > _numbers(move.weight):
            yield batch
            batch = []
        batch.append(move)
    yield batch


def _numbers(weight: Tensor) -> int:
    """Return the numbers of one batch; an accelerator has no such cache and takes everything at once."""
    return BATCH if weight.is_cpu else 1 << 62


def orthogonalize(x: Tensor, steps: int = NEWTON_SCHULZ_STEPS) -> Tensor:
    """Return roughly the nearest half-orthogonal matrices: (M, rows, columns) bfloat16 -> the same shape.

        X <- X / |X|;  X <- (a + b X X^T + c (X X^T)^2) X, `steps` times

    Tall matrices take X^T X from the right, which is the same without a transpose. If one side is far longer, the first
    two iterations use the Gram matrix G = X X^T alone, since all its polynomials commute:

        Z = b G + c G^2;  G <- (a + Z) G (a + Z);  X <- (a + Z) (a + Z') X

    Source: Zhang, Amsel, Chen and Dao 2026, "Gram Newton-Schulz" (https://dao-lab.ai/blog/2026/gram-newton-schulz).
    Departs from it: in bfloat16, three iterations on one Gram matrix can diverge (its small eigenvalues are lost in
    rounding and become negative), so only the first two use it and the others start from a new X each; and `a` is kept
    out of the rounded factor.
    """
    a = NEWTON_SCHULZ[0]
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    short, long = sorted(x.shape[1:])
    if steps >= 2 and short >= GRAM_SHORT and long >= GRAM_RATIO * short:
        gram = _gram(x)
        first = _polynomial(gram)
        gram = torch.baddbmm(gram, gram, first, beta=a)
        second = _polynomial(torch.baddbmm(gram, gram, first, beta=a))
        x = _times(x, (first + second).baddbmm_(first, second, beta=a), a * a)
        steps -= 2
    for _ in range(steps):
        x = _times(x, _polynomial(_gram(x)), a)
    return x


def _gram(x: Tensor) -> Tensor:
    """Compute X X^T of wide matrices and X^T X of tall ones, (M, short, short)."""
    return torch.bmm(x, x.mT) if x.shape[1] <= x.shape[2] else torch.bmm(x.mT, x)


def _polynomial(gram: Tensor) -> Tensor:
    """Compute b G + c G^2, rounded once."""
    _, b, c = NEWTON_SCHULZ
    return torch.baddbmm(gram, gram, gram, beta=b, alpha=c)


def _times(x: Tensor, factor: Tensor, scale: float) -> Tensor:
    """Compute (scale + factor) X, from the side of the Gram matrix."""
    return torch.baddbmm(x, *((factor, x) if x.shape[1] <= x.shape[2] else (x, factor)), beta=scale)
