"""Hidden states that learn from those of a teacher, through matrices that are trained beside the model.

B batch, T time, D width of the model, W width of the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.losses import mean_over
from ..system.collectives import ranks, total

PREFIX = "distillation."
"""Begins the names of these matrices and their optimizer's slots in a checkpoint."""


class Projections:
    """One matrix (D, W) for each pair of layers, with an AdamW of its own.

    They are no part of the model: an export never sees them. Source: FitNets, Romero et al. 2015 (arXiv 1412.6550),
    eq. 3. Departs from it: both states are normed to a mean square of 1, so that the distance is about 1 at the start,
    and every pair is trained from the first step on.
    """

    def __init__(
        self, pairs: Sequence[tuple[int, int]], widths: tuple[int, int], *, lr: float, seed: int, device: torch.device
    ) -> None:
        """Draw the matrices by a generator of their own, so that the model's weights are those of any other run.

        Args:
            pairs: A layer of the model and one of the teacher, each.
            widths: D and W.
            lr: The peak learning rate.
            seed: That of the run.
            device: Where the model computes.
        """
        self.pairs, self.lr, (width, theirs) = tuple(pairs), lr, widths
        generator = torch.Generator().manual_seed(seed)
        self.weights = {
            f"{PREFIX}projections.{own}-{other}": nn.Parameter(
                (torch.randn(width, theirs, generator=generator) * width**-0.5).to(device)
            )
            for own, other in self.pairs
        }
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr, weight_decay=0.0)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of the model whose states are needed, in order of the pairs."""
        return tuple(own for own, _ in self.pairs)

    def loss(self, states: Sequence[Tensor], theirs: Sequence[Tensor], scored: Tensor) -> Tensor:
        """Mean over pairs, tokens and numbers of (norm(x) P - norm(y))^2, ().

        Args:
            states: x (B, T, D), after each of `layers`.
            theirs: y (B, T, W), of the teacher.
            scored: (B, T) bool, the tokens that count.
        """
        losses = []
        for weight, own, other in zip(self.weights.values(), states, theirs, strict=True):
            with torch.autocast(own.device.type, enabled=False):
                wanted = F.rms_norm(other.float(), other.shape[-1:])
                projected = F.rms_norm(own.float(), own.shape[-1:]) @ weight
                distance = (projected - wanted).square().mean(-1)  # (B, T)
            losses.append(mean_over(distance.flatten(), scored.flatten()))
        return torch.stack(losses).mean()

    def step(self, rate: float) -> None:
        """Take a step with the gradients of all ranks, at `rate` (0..1) of the peak learning rate."""
        if ranks() > 1:
            for weight in self.weights.values():
                if weight.grad is not None:
                    (weight.grad,) = total(weight.grad)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * rate
        self.optimizer.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the matrices and the slots of their optimizer by name, for a checkpoint."""
        tensors: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            tensors[name] = weight.detach()
            for slot, value in self.optimizer.state.get(weight, {}).items():
                tensors[f"{name}.{slot}"] = torch.as_tensor(value)
        return tensors

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state_tensors` returned, from all tensors of a checkpoint."""
        for name, weight in self.weights.items():
            if name not in tensors:
                continue
            weight.copy_(tensors[name])
            slots = {key: value for key, value in tensors.items() if key.startswith(f"{name}.")}
            for key, value in slots.items():
                moved = value.to(weight.device, copy=True) if value.ndim else value.clone()
                self.optimizer.state[weight][key.removeprefix(f"{name}.")] = moved
