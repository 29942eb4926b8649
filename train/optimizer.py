"""The optimizers: Muon for the matrices inside the blocks, AdamW for everything else, or AdamW alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from .errors import UserError
from .model.config import Section

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Keller Jordan, https://kellerjordan.github.io/posts/muon/)."""
NEWTON_SCHULZ_STEPS = 5


class OptimizerConfig(Section):
    """What moves the weights, and how far."""

    kind: Literal["muon", "adamw"] = "muon"
    """`muon`: Muon for the matrices inside the blocks and AdamW for the rest; `adamw`: AdamW alone."""
    lr: float = Field(0.03, gt=0)
    """Muon's learning rate."""
    adamw_lr: float = Field(1.2e-2, gt=0)
    """AdamW's, for the rest."""
    adamw_matrix_lr: float = Field(3e-3, gt=0)
    """AdamW's for the matrices too, where `kind` is `adamw`."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled, on the matrices inside the blocks only."""
    momentum: float = Field(0.95, ge=0, lt=1)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    clip_norm: float = Field(1.0, ge=0)
    """Largest norm of the whole gradient; 0 does not clip. The norm that is logged is the one before clipping."""


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` that also takes stacks of matrices (E, in, out) and orthogonalises all of one shape at once.

        B <- lerp(B, G, 1 - momentum);  U = NS(lerp(G, B, momentum))
        W <- W (1 - lr decay) - lr sqrt(max(1, out / in)) U

    A 2-D weight is (out, in) as in nn.Linear, a 3-D one a stack of (in, out) as in the experts. The Newton-Schulz steps
    run in bfloat16. Judged in the tests by `torch.optim.Muon`, which takes 2-D weights one by one.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.02, weight_decay: float = 0.1, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for weight in group["params"]:
                assert weight.ndim in (2, 3), f"Muon takes matrices and stacks of them, not {tuple(weight.shape)}"

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # the trainer has no closure, so no loss
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                buffer = state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(buffer, group["momentum"])
                by_shape[lying(weight)].append((weight, update))
            for pairs in by_shape.values():
                _apply(pairs, group["lr"], group["weight_decay"])


def lying(weight: Tensor) -> tuple[int, int]:
    """The shape (rows, columns) in which a matrix is orthogonalised: never more rows than columns."""
    rows, columns = weight.shape[-2:]
    return min(rows, columns), max(rows, columns)


def _apply(pairs: list[tuple[Tensor, Tensor]], lr: float, weight_decay: float) -> None:
    """Orthogonalises the updates of weights of one shape in one batch and takes the step."""
    stacked = []
    for _, update in pairs:
        update = update.bfloat16()
        update = update.mT if update.shape[-2] > update.shape[-1] else update
        stacked.append(update.reshape(-1, *update.shape[-2:]))
    orthogonal = orthogonalize(torch.cat(stacked))
    parts = torch.split(orthogonal, [len(each) for each in stacked])
    for (weight, _), part in zip(pairs, parts, strict=True):
        part = part.mT if weight.shape[-2] > weight.shape[-1] else part
        wide, narrow = (weight.shape[0], weight.shape[1]) if weight.ndim == 2 else (weight.shape[2], weight.shape[1])
        weight.mul_(1 - lr * weight_decay)
        weight.add_(part.reshape(weight.shape), alpha=-lr * math.sqrt(max(1.0, wide / narrow)))


def orthogonalize(x: Tensor) -> Tensor:
    """(M, rows, columns) bfloat16, rows <= columns -> the nearest half-orthogonal matrices, roughly, same shape."""
    a, b, c = NEWTON_SCHULZ
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def split_parameters(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Names -> weights: the matrices inside the blocks (attention, experts, dense FFN), and all the rest."""
    matrices: dict[str, nn.Parameter] = {}
    rest: dict[str, nn.Parameter] = {}
    for name, weight in model.named_parameters():
        name = name.replace("_orig_mod.", "")
        inside = name.startswith("layers.") and weight.ndim >= 2 and "router" not in name
        (matrices if inside else rest)[name] = weight
    return matrices, rest


class Optimizers:
    """The one or two optimizers of a run, seen as one: step, learning rate, and a state made of named tensors."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        matrices, rest = split_parameters(model)
        self.names = {**matrices, **rest}
        betas = (config.beta1, config.beta2)
        groups: list[dict[str, Any]] = [{"params": list(rest.values()), "weight_decay": 0.0}]
        self.all: list[torch.optim.Optimizer] = []
        if matrices and config.kind == "muon":
            self.all.append(Muon(matrices.values(), config.lr, config.weight_decay, config.momentum))
        elif matrices:
            decay = config.weight_decay
            groups.append({"params": list(matrices.values()), "lr": config.adamw_matrix_lr, "weight_decay": decay})
        self.all.append(torch.optim.AdamW(groups, config.adamw_lr, betas, config.eps, fused=True))
        self.peaks = [[float(group["lr"]) for group in one.param_groups] for one in self.all]

    def set_rate(self, factor: float) -> None:
        """Every learning rate is its peak times `factor`."""
        for one, peaks in zip(self.all, self.peaks, strict=True):
            for group, peak in zip(one.param_groups, peaks, strict=True):
                group["lr"] = peak * factor

    def step(self) -> None:
        for one in self.all:
            one.step()

    def zero_grad(self) -> None:
        for one in self.all:
            one.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """`{weight}.{slot}` -> tensor; empty before the first step. Hyperparameters are the config's."""
        tensors: dict[str, Tensor] = {}
        for name, weight in self.names.items():
            for one in self.all:
                for slot, value in one.state.get(weight, {}).items():
                    tensors[f"{name}.{slot}"] = torch.as_tensor(value)
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of `state_tensors`.

        Raises:
            UserError: a tensor belongs to no weight of this model.
        """
        for key, tensor in tensors.items():
            name, _, slot = key.rpartition(".")
            weight = self.names.get(name)
            if weight is None:
                raise UserError(f"the optimizer's state names {name}, which this model does not have; start a new run")
            owner = next(o for o in self.all if any(weight is p for g in o.param_groups for p in g["params"]))
            owner.state[weight][slot] = tensor.to(weight.device) if tensor.ndim else tensor.clone()
