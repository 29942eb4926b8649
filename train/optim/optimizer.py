"""The optimizers of a run: one of four for the matrices inside the blocks, and AdamW for everything else."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...contract.errors import UserError
from ..parallel.placement import Placement
from .lars import LARS
from .layer_scaling import factors, layer_norms, layer_of
from .muon import Muon
from .optimizer_config import OptimizerConfig

VECTORS = ("router", "position_embedding", "shared_gate", "mixer.conv")
"""Words in the names of weights that are no matrix between two layers, though they have two dimensions."""


def split_parameters(weights: Mapping[str, nn.Parameter]) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Split name -> weight into the matrices inside the blocks (mixers, experts, dense FFN) and all the rest."""
    matrices: dict[str, nn.Parameter] = {}
    rest: dict[str, nn.Parameter] = {}
    for name, weight in weights.items():
        plain = weight.ndim >= 2 and not name.endswith("bias") and not any(word in name for word in VECTORS)
        (matrices if plain and name.startswith("layers.") else rest)[name] = weight
    return matrices, rest


class Optimizers:
    """The one or two optimizers of a run behind one interface: step, learning rate, and state as named tensors."""

    def __init__(
        self, model: nn.Module, config: OptimizerConfig, placed: Placement | None = None, by_layer: bool = False
    ) -> None:
        """Make the optimizers of a model's weights.

        Args:
            model: the model.
            config: kind, rates and limits.
            placed: where the weights are stored, if they are split over ranks.
            by_layer: make a group of each layer, so that its rate can be changed even if the config scales none.
        """
        self.config, self.placed = config, placed or Placement(model)
        matrices, rest = split_parameters(self.placed.weights)
        self.names = {**matrices, **rest}
        self.factors: dict[str, float] = {}
        """layer -> factor on its learning rate at the last `balance`; empty if rates are not scaled."""
        self.held: dict[str, float] = {}
        """layer, or `all` -> factor by which the monitor lowers its rate; empty if it lowers none."""
        self._by_layer = by_layer or config.bidirectional
        self.rate = 1.0
        """The factor of the schedule on every rate, from the last call of `set_rate`."""
        decay, momentum = config.weight_decay, config.momentum
        rest_groups = self._groups(rest, lr=config.adamw_lr, weight_decay=0.0)
        self.all: list[torch.optim.Optimizer] = []
        if config.kind == "adamw":
            rest_groups += self._groups(matrices, lr=config.adamw_matrix_lr, weight_decay=decay)
        elif matrices:
            groups = self._groups(matrices, lr=config.lr)
            if config.kind == "muon":
                steps = config.newton_schulz_steps
                self.all.append(Muon(groups, config.lr, decay, momentum, self.placed, steps, config.expert_turns))
            elif config.kind == "lars":
                self.all.append(LARS(groups, config.lr, decay, momentum, config.eps, self.placed.norm_of_each))
            else:
                self.all.append(torch.optim.SGD(groups, config.lr, momentum, weight_decay=decay))
        betas = (config.beta1, config.beta2)
        self.all.append(torch.optim.AdamW(rest_groups, config.adamw_lr, betas, config.eps, fused=True))

    def _groups(self, weights: dict[str, nn.Parameter], **options: float) -> list[dict[str, Any]]:
        """Make one group, or one per layer if layers have their own rates; `peak` is the highest rate."""
        by_layer: dict[str, list[nn.Parameter]] = defaultdict(list)
        for name, weight in weights.items():
            by_layer[layer_of(name) if self._by_layer else ""].append(weight)
        return [
            {"params": params, "layer": layer, "peak": options["lr"], **options} for layer, params in by_layer.items()
        ]

    def set_rate(self, factor: float) -> None:
        """Set every learning rate to its peak times `factor`, times the factors of its layer."""
        self.rate = factor
        held = self.held
        for one in self.all:
            for group in one.param_groups:
                layer = group["layer"]
                own = self.factors.get(layer, 1.0) * held.get(layer, 1.0) * held.get("all", 1.0)
                group["lr"] = group["peak"] * factor * own

    def balance(self) -> None:
        """Set each layer's factor from the current gradients; call it before they are clipped."""
        if self.config.bidirectional:
            self.factors = factors(layer_norms(self.names.items(), self.placed.squares), self.config.target_norm)
            self.set_rate(self.rate)

    def record(self) -> dict[str, float]:
        """Return the smallest and the largest factor of a layer, for metrics.jsonl."""
        if not self.factors:
            return {}
        return {"lr_factor_least": min(self.factors.values()), "lr_factor_most": max(self.factors.values())}

    def step(self) -> None:
        """Take one step with each optimizer."""
        for one in self.all:
            one.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for one in self.all:
            one.zero_grad(set_to_none=True)
        self.placed.forget()

    def state_tensors(self) -> dict[str, Tensor]:
        """Return `{weight}.{slot}` -> whole tensor; empty before the first step. Hyperparameters are in the config."""
        tensors: dict[str, Tensor] = {}
        for name, weight in self.names.items():
            for one in self.all:
                for slot, value in one.state.get(weight, {}).items():
                    tensors[f"{name}.{slot}"] = self.placed.whole(weight, torch.as_tensor(value))
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` returned.

        Raises:
            UserError: a tensor belongs to no weight of this model.
        """
        for key, tensor in tensors.items():
            name, _, slot = key.rpartition(".")
            weight = self.names.get(name)
            if weight is None:
                raise UserError(f"the optimizer's state names {name}, which this model does not have; start a new run")
            owner = next(o for o in self.all if any(weight is p for g in o.param_groups for p in g["params"]))
            tensor = self.placed.own(weight, tensor)
            owner.state[weight][slot] = tensor.to(weight.device, copy=True) if tensor.ndim else tensor.clone()
