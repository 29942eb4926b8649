"""LARS: momentum SGD in which every step is a fixed share of the weight's norm."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..parallel.placement import norm_of_each


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling.

        V <- momentum V + lr |W| / (|G| + eps) G;  W <- W (1 - lr decay) - V

    so that one step moves a weight by about the share `lr` of its own norm, whatever the size of its gradient. The
    norms are those of one matrix: in a stack of experts (E, in, out) each expert has its own, and one that no token
    used only follows its momentum.

    Source: You et al. 2017, "Large batch training of convolutional networks" (arXiv 1708.03888), algorithm 1.
    Departs from it: the trust coefficient is part of `lr`, since only the product of the two matters; the decay is
    decoupled, as in the other optimizers here: inside the ratio, 0.1 |W| is larger than most gradients, and the weights
    only shrink (measured: no learning at any rate).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        eps: float = 1e-8,
        norm_of: Callable[[nn.Parameter, Tensor], Tensor] | None = None,
    ) -> None:
        """Set up the groups of `params`; `norm_of` replaces the norm of tensors that are split over ranks."""
        self.norm_of = norm_of or (lambda _, tensor: norm_of_each(tensor))
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # the trainer has no closure, so no loss
        """Take one step."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                ratio = self.norm_of(weight, weight) / (self.norm_of(weight, weight.grad) + group["eps"])
                move = state["momentum_buffer"].mul_(group["momentum"]).add_(group["lr"] * ratio * weight.grad)
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(move)
