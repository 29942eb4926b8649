"""What training minimises: the cross-entropy and the auxiliary losses, summed in one place."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from .block import LayerRouting
from .config import Section
from .transformer import ModelOutput, Transformer


class LossConfig(Section):
    """Weights of the auxiliary losses; 0 leaves one out."""

    load_balancing_loss: float = Field(1e-2, ge=0)
    router_z_loss: float = Field(1e-4, ge=0)
    router_entropy_loss: float = Field(0.0, ge=0)
    depth_z_loss: float = Field(1e-3, ge=0)
    exit_loss: float = Field(0.3, ge=0)


def cross_entropy(logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Nats per counted token: logits (B, T, V), targets (B, T), counted (B, T) bool -> ()."""
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return (losses * counted.flatten()).sum() / counted.sum().clamp(min=1)


def load_balancing_loss(layer: LayerRouting, counted: Tensor) -> Tensor:
    """E sum_e f_e P_e: f the share of selections that went to e, P its mean probability. 1 when even, its minimum.

    Source: Switch Transformer, Fedus et al. 2021 (arXiv 2101.03961), eq. 4-6.
    """
    assert layer.routes is not None
    taken = layer.routes.selected_experts & counted[:, None]  # (N, E)
    share = taken.sum(0) / taken.sum().clamp(min=1)
    probs = _mean(layer.routes.router_probs, counted & layer.runs)  # (E,)
    return len(share) * (share * probs).sum()


def router_z_loss(layer: LayerRouting, counted: Tensor) -> Tensor:
    """Mean of logsumexp(logits)^2, keeps the router's logits small. Source: ST-MoE (arXiv 2202.08906), eq. 5."""
    assert layer.routes is not None
    return _mean(layer.routes.router_logits.logsumexp(-1).square(), counted & layer.runs)


def router_entropy_loss(layer: LayerRouting, counted: Tensor) -> Tensor:
    """Mean entropy of the routing distribution in nats: pulls towards few experts. Huang et al. 2024, eq. 6."""
    assert layer.routes is not None
    probs = layer.routes.router_probs
    return _mean(-(probs * probs.clamp(min=1e-30).log()).sum(-1), counted & layer.runs)


def depth_z_loss(layer: LayerRouting, counted: Tensor) -> Tensor:
    """Mean of the squared depth logit: keeps the score near 1/2, where the gate is a plain residual."""
    assert layer.depth_logits is not None
    return _mean(layer.depth_logits.square(), counted)


def exit_loss(model: Transformer, out: ModelOutput, targets: Tensor, counted: Tensor) -> Tensor:
    """Mean over the exit layers of the cross-entropy of head(norm(x_l)). LayerSkip (arXiv 2404.16710), eq. 4."""
    losses = [cross_entropy(model.head(hidden), targets, counted) for hidden in out.exit_hidden.values()]
    return torch.stack(losses).mean()


def training_loss(
    model: Transformer, out: ModelOutput, targets: Tensor, loss_mask: Tensor, config: LossConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to differentiate, (), and its parts by name, unweighted and detached.

    Args:
        targets: (B, T) int64. loss_mask: (B, T) bool, tokens that count; the auxiliary losses ignore the others too.
    """
    counted = loss_mask.flatten()
    routed = [layer for layer in out.routing if layer.routes is not None]
    gated = [layer for layer in out.routing if layer.depth_logits is not None]
    parts = {"cross_entropy": cross_entropy(out.logits, targets, loss_mask)}
    for loss in (load_balancing_loss, router_z_loss, router_entropy_loss):
        if routed:
            parts[loss.__name__] = torch.stack([loss(layer, counted) for layer in routed]).mean()
    if gated:
        parts["depth_z_loss"] = torch.stack([depth_z_loss(layer, counted) for layer in gated]).mean()
    if out.exit_hidden and config.exit_loss:
        parts["exit_loss"] = exit_loss(model, out, targets, loss_mask)
    weights: dict[str, Any] = {"cross_entropy": 1.0, **config.model_dump()}
    total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    return total, {name: part.detach() for name, part in parts.items()}


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of `values` (N, ...) over the tokens that count."""
    weights = counted.view(-1, *[1] * (values.ndim - 1)).float()
    return (values * weights).sum(0) / weights.sum().clamp(min=1)
