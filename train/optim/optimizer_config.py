"""The `optimizer:` section of a run's config."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ..system.section import Section

BY_KIND: Mapping[str, dict[str, float]] = {
    "muon": {},
    "adamw": {},
    "lars": {"lr": 0.003},
    "sgd": {"lr": 0.1, "weight_decay": 1e-4},
}
"""Defaults of a kind where they differ from Muon's: the best of a sweep by factors of 3 (300 steps of quickstart)."""


class OptimizerConfig(Section):
    """Optimizer of the weights, its rates, and the clipping of gradients.

    `kind` moves the matrices inside the blocks (attention and other mixers, experts, dense FFN). Embedding, output
    head, norms, routers, position embeddings, short convolutions and all tensors of one dimension always use AdamW
    (Loshchilov and Hutter, arXiv 1711.05101).

    - `muon` (Jordan et al. 2024, kellerjordan.github.io/posts/muon): the default; the fewest steps to a loss.
    - `adamw`: to repeat published recipes, or where Muon's matrix products take too long.
    - `lars` (You et al., arXiv 1708.03888): for very large batches; every step is a fixed share of each weight.
    - `sgd` with momentum (Polyak 1964; as in torch): the plain baseline, with the least memory.
    """

    kind: Literal["muon", "adamw", "lars", "sgd"] = "muon"
    """Optimizer of the matrices inside the blocks: `muon`, `adamw`, `lars` or `sgd`."""
    lr: float = Field(0.03, gt=0)
    """Peak learning rate of the matrices under `muon`, `lars` and `sgd`, above 0. Where it is not given: 0.03 under
    `muon`, 0.003 under `lars`, 0.1 under `sgd`."""
    adamw_lr: float = Field(1.2e-2, gt=0)
    """Peak learning rate of AdamW for everything but the matrices, above 0."""
    adamw_matrix_lr: float = Field(3e-3, gt=0)
    """Peak learning rate of the matrices where `kind` is `adamw`, above 0."""
    weight_decay: float = Field(0.1, ge=0)
    """Weight decay of the matrices inside the blocks, multiplied by the learning rate, 0 or more. Where it is not
    given: 0.1, and 1e-4 under `sgd`, whose rate is much higher. Decoupled, except under `sgd`, where it is part of the
    gradient."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Momentum of `muon`, `lars` and `sgd`, 0 to below 1."""
    newton_schulz_steps: int = Field(5, ge=1, le=20)
    """Iterations of `muon` that equalise the singular values of an update, 1 to 20. Each quadruples the small ones. 5
    is the published number; 4 take a fifth less of Muon's time and learned 0.01 nats less in 300 steps
    (docs/decisions/0021)."""
    expert_turns: int = Field(4, ge=1, le=1024)
    """Steps in which `muon` moves each expert once, 1 to 1,024: a step moves one in `expert_turns` of the experts of a
    layer, `expert_turns` times as far, and adds the gradients of the others to their momentum. 1 moves all experts in
    every step, as runs before this setting do (docs/decisions/0032)."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay per step of AdamW's mean of the gradient, 0 to below 1."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """Decay per step of AdamW's mean of the squared gradient, 0 to below 1."""
    eps: float = Field(1e-8, gt=0)
    """Number added to AdamW's and LARS's denominator, so that it is never 0; above 0."""
    bidirectional: bool = False
    """Whether each layer's learning rate is multiplied by clamp(sqrt(target_norm / (gradient norm + 1e-6)), 0.3, 3).
    The norm is taken before clipping; a layer is a whole block, the embedding, the output head, or all the rest. It
    works with every `kind`. The idea of LARS (arXiv 1708.03888) in both directions: for models in which some layers
    have far larger gradients than others, such as deep models and models with routers."""
    target_norm: float = Field(3.0, gt=0)
    """Gradient norm of a layer at which `bidirectional` leaves its rate unchanged, above 0."""
    clip: Literal["norm", "percentile", "agc"] = "norm"
    """Method of gradient clipping. `norm`: to `clip_norm` (Pascanu et al. 2013, arXiv 1211.5063), the usual choice.
    `percentile`: to a percentile of the last `clip_window` norms (Seetharaman et al. 2020, arXiv 2007.14469), if the
    right norm is unknown. `agc`: each row to a share of the norm of its weights (Brock et al. 2021, arXiv
    2102.06171), for large rates and batches."""
    clip_norm: float = Field(1.0, ge=0)
    """Largest norm of the whole gradient under `norm`, 0 or more; 0 does not clip. The logged norm is always the one
    before clipping."""
    clip_percentile: float = Field(10.0, gt=0, le=100)
    """Percentile of the last norms that is the largest norm under `percentile`, above 0 to 100."""
    clip_window: int = Field(256, ge=2, le=1_000_000)
    """Accepted steps whose norms `percentile` remembers, 2 to 1,000,000."""
    clip_share: float = Field(0.01, gt=0)
    """Largest norm of a row's gradient under `agc`, as a share of the norm of the row's weights; above 0."""

    @model_validator(mode="before")
    @classmethod
    def _fits_its_kind(cls, given: Any) -> Any:
        """Set the rate and decay of the kind, where none are given."""
        kind = given.get("kind") if isinstance(given, Mapping) else None
        return {**BY_KIND.get(kind, {}), **given} if isinstance(kind, str) else given

    @model_validator(mode="after")
    def _clips_once(self) -> Self:
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
