"""The optimizers of a run: one of four for the matrices inside the blocks, and AdamW for everything else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ...contract.errors import UserError
from ..model.config import Section
from ..parallel.placement import Placement
from .lars import LARS
from .layer_scaling import factors, layer_norms, layer_of
from .muon import Muon

BY_KIND: Mapping[str, dict[str, float]] = {
    "muon": {},
    "adamw": {},
    "lars": {"lr": 0.003},
    "sgd": {"lr": 0.1, "weight_decay": 1e-4},
}
"""What suits each kind, where it is not what suits Muon: the best of a sweep by thirds (300 steps of quickstart)."""


class OptimizerConfig(Section):
    """What moves the weights, and how far.

    `kind` moves the matrices inside the blocks (attention, experts, dense FFN); embedding, head, norms, routers,
    position embeddings and everything of one dimension always go with AdamW (Loshchilov and Hutter, arXiv 1711.05101).

    - `muon` (Jordan et al. 2024, kellerjordan.github.io/posts/muon): the default; the fewest steps to a loss.
    - `adamw`: where published recipes are to be repeated, or Muon's matrix products take too long.
    - `lars` (You et al., arXiv 1708.03888): very large batches; every step is a stated share of each weight.
    - `sgd` with momentum (Polyak 1964; as in torch): the plain baseline, and the least memory.
    """

    kind: Literal["muon", "adamw", "lars", "sgd"] = "muon"
    lr: float = Field(0.03, gt=0)
    """Peak learning rate of the matrices under `muon` (0.03 where none is given), `lars` (0.003) and `sgd` (0.1)."""
    adamw_lr: float = Field(1.2e-2, gt=0)
    """AdamW's, for the rest."""
    adamw_matrix_lr: float = Field(3e-3, gt=0)
    """AdamW's for the matrices too, where `kind` is `adamw`."""
    weight_decay: float = Field(0.1, ge=0)
    """On the matrices inside the blocks only, times the learning rate: 0.1 where none is given, and 1e-4 under `sgd`,
    whose rate is so much higher. Decoupled, but under `sgd` a part of the gradient."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Of `muon`, `lars` and `sgd`."""
    newton_schulz_steps: int = Field(5, ge=1, le=20)
    """Of `muon`: iterations that make the singular values of an update alike, each of which quadruples the small ones.
    5 is what Muon was published with; 4 take a fifth less of Muon's time and learned 0.01 nats less in 300 steps
    (docs/decisions/0021)."""
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    bidirectional: bool = False
    """Multiply each layer's learning rate by clamp(sqrt(target_norm / (gradient norm + eps)), 0.3, 3), the norm taken
    before clipping; a layer is a whole block, the embedding, the head, or all the rest. With every `kind`. The idea of
    LARS (arXiv 1708.03888) in both directions: where some layers have far larger gradients than others, as in deep
    models and with routers."""
    target_norm: float = Field(3.0, gt=0)
    clip: Literal["norm", "percentile", "agc"] = "norm"
    """`norm`: the gradient is never longer than `clip_norm` (Pascanu et al. 2013, arXiv 1211.5063), the usual choice.
    `percentile`: never longer than a percentile of the last
    `clip_window` gradients (Seetharaman et al. 2020, arXiv 2007.14469), where the right length is not known. `agc`:
    each row no longer than a share of its weights (Brock et al. 2021, arXiv 2102.06171), for large rates and batches.
    """
    clip_norm: float = Field(1.0, ge=0)
    """Of `norm`; 0 does not clip. The norm that is logged is the one before clipping, whatever clips."""
    clip_percentile: float = Field(10.0, gt=0, le=100)
    clip_window: int = Field(256, ge=2)
    """Accepted steps of which `percentile` remembers the norms."""
    clip_share: float = Field(0.01, gt=0)
    """Of `agc`: most of a row's gradient, as a share of the row itself."""

    @model_validator(mode="before")
    @classmethod
    def _fits_its_kind(cls, given: Any) -> Any:
        """Rate and decay of the kind, where none are given."""
        kind = given.get("kind") if isinstance(given, Mapping) else None
        return {**BY_KIND.get(kind, {}), **given} if isinstance(kind, str) else given

    @model_validator(mode="after")
    def _clips_once(self) -> OptimizerConfig:
        own = {"norm": {"clip_norm"}, "percentile": {"clip_percentile", "clip_window"}, "agc": {"clip_share"}}
        for kind, names in own.items():
            for name in sorted(names & self.model_fields_set):
                default = type(self).model_fields[name].default
                if kind != self.clip and getattr(self, name) != default:
                    raise ValueError(
                        f"{name} is {getattr(self, name)}, which has no effect with clip {self.clip!r}; "
                        f"leave it out, or set clip to {kind!r}"
                    )
        return self


def split_parameters(weights: Mapping[str, nn.Parameter]) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Names -> weights: the matrices inside the blocks (attention, experts, dense FFN), and all the rest."""
    matrices: dict[str, nn.Parameter] = {}
    rest: dict[str, nn.Parameter] = {}
    for name, weight in weights.items():
        plain = weight.ndim >= 2 and "router" not in name and "position_embedding" not in name
        (matrices if plain and name.startswith("layers.") else rest)[name] = weight
    return matrices, rest


class Optimizers:
    """The one or two optimizers of a run, seen as one: step, learning rate, and a state made of named tensors."""

    def __init__(
        self, model: nn.Module, config: OptimizerConfig, placed: Placement | None = None, by_layer: bool = False
    ) -> None:
        """`placed` says where the model's weights lie, if they do not all lie here; `by_layer`: layers have rates of
        their own, whether or not the config scales them."""
        self.config, self.placed = config, placed or Placement(model)
        matrices, rest = split_parameters(self.placed.weights)
        self.names = {**matrices, **rest}
        self.factors: dict[str, float] = {}
        """layer -> factor on its learning rate at the last `balance`; empty where rates are not scaled."""
        self.held: dict[str, float] = {}
        """layer, or `all` -> factor by which the monitor holds its rate down; empty where it holds none."""
        self._by_layer = by_layer or config.bidirectional
        self.rate = 1.0
        """The factor of the schedule on every rate, as `set_rate` was last told."""
        decay, momentum = config.weight_decay, config.momentum
        rest_groups = self._groups(rest, lr=config.adamw_lr, weight_decay=0.0)
        self.all: list[torch.optim.Optimizer] = []
        if config.kind == "adamw":
            rest_groups += self._groups(matrices, lr=config.adamw_matrix_lr, weight_decay=decay)
        elif matrices:
            groups = self._groups(matrices, lr=config.lr)
            if config.kind == "muon":
                self.all.append(Muon(groups, config.lr, decay, momentum, self.placed, config.newton_schulz_steps))
            elif config.kind == "lars":
                self.all.append(LARS(groups, config.lr, decay, momentum, config.eps, self.placed.norm_of_each))
            else:
                self.all.append(torch.optim.SGD(groups, config.lr, momentum, weight_decay=decay))
        betas = (config.beta1, config.beta2)
        self.all.append(torch.optim.AdamW(rest_groups, config.adamw_lr, betas, config.eps, fused=True))

    def _groups(self, weights: dict[str, nn.Parameter], **options: float) -> list[dict[str, Any]]:
        """One group; or one for each layer, where layers have rates of their own. `peak` is the rate at its highest."""
        by_layer: dict[str, list[nn.Parameter]] = defaultdict(list)
        for name, weight in weights.items():
            by_layer[layer_of(name) if self._by_layer else ""].append(weight)
        return [
            {"params": params, "layer": layer, "peak": options["lr"], **options} for layer, params in by_layer.items()
        ]

    def set_rate(self, factor: float) -> None:
        """Every learning rate is its peak times `factor`, times its layer's factors where layers have some."""
        self.rate = factor
        held = self.held
        for one in self.all:
            for group in one.param_groups:
                layer = group["layer"]
                own = self.factors.get(layer, 1.0) * held.get(layer, 1.0) * held.get("all", 1.0)
                group["lr"] = group["peak"] * factor * own

    def balance(self) -> None:
        """Sets each layer's factor by the gradients there are now: call it before they are clipped."""
        if self.config.bidirectional:
            self.factors = factors(layer_norms(self.names.items(), self.placed.squares), self.config.target_norm)
            self.set_rate(self.rate)

    def record(self) -> dict[str, float]:
        """What a record says of the layers' rates: the smallest and the largest factor."""
        if not self.factors:
            return {}
        return {"lr_factor_least": min(self.factors.values()), "lr_factor_most": max(self.factors.values())}

    def step(self) -> None:
        for one in self.all:
            one.step()

    def zero_grad(self) -> None:
        for one in self.all:
            one.zero_grad(set_to_none=True)
        self.placed.forget()

    def state_tensors(self) -> dict[str, Tensor]:
        """`{weight}.{slot}` -> tensor; empty before the first step. Hyperparameters are the config's."""
        tensors: dict[str, Tensor] = {}
        for name, weight in self.names.items():
            for one in self.all:
                for slot, value in one.state.get(weight, {}).items():
                    tensors[f"{name}.{slot}"] = self.placed.whole(weight, torch.as_tensor(value))
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
            tensor = self.placed.own(weight, tensor)
            owner.state[weight][slot] = tensor.to(weight.device, copy=True) if tensor.ndim else tensor.clone()
