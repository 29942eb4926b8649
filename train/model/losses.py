"""The training loss: cross-entropy and auxiliary losses, summed in one place.

B batch, T time, N = B*T tokens, E experts (or routed heads), V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..system.collectives import total
from .block import LayerRouting
from .config.loss import LossConfig
from .output import ModelOutput
from .routing.exits import ExitRouter, agreement_targets
from .transformer import Transformer, router_of


def cross_entropy(logits: Tensor, targets: Tensor, counted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Nats per counted token: logits (B, T, V), targets (B, T), counted (B, T) bool -> ().

    With `weights` (B,) the nats of each sequence are multiplied by its own.
    """
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    if weights is not None:
        losses = (losses.view(targets.shape) * weights[:, None]).flatten()
    nats, count = total((losses * counted.flatten()).sum(), counted.sum())
    return nats / count.clamp(min=1)


def load_balancing_loss(layer: LayerRouting, counted: Tensor) -> Tensor:
    """E sum_e f_e P_e: f the share of selections that went to e, P its mean probability. 1 when even, its minimum.

    Source: Switch Transformer, Fedus et al. 2021 (arXiv 2101.03961), eq. 4-6. With zero-computation experts,
    (sum_e 1 / n_e) sum_e n_e f_e P_e, where n is `tau` for them and 1 for others: MoE++ (arXiv 2410.07348), whose
    minimum, where shares are as 1 / n, is 1 again.
    """
    assert layer.routes is not None
    return _balance(layer.routes.selected, layer.routes.router_probs, counted & layer.runs, layer.routes.balance)


def router_l1_loss(model: Transformer, out: ModelOutput, counted: Tensor) -> Tensor | None:
    """Mean over layers of c sum_e f_e G_e, with f_e = (E / k) s_e; None without routers of `routing: relu`.

    G is the mean gate of an expert, s its share of the tokens, k the wanted experts per token, c the coefficient that
    adapts so that k is reached. Source: ReMoE (arXiv 2412.14711).
    """
    losses = []
    for block, layer in zip(model.blocks(), out.routing, strict=True):
        router = None if block.moe is None else block.moe.router
        if layer.routes is None or router is None or router.l1 is None:
            continue
        among = counted & layer.runs
        share = mean_over(layer.routes.selected_experts.float(), among)  # (E,)
        gates = mean_over(layer.routes.routing_weights, among)  # (E,)
        losses.append(router.l1.coefficient * (len(share) / router.target_units) * (share * gates).sum())
    return torch.stack(losses).mean() if losses else None


def head_balancing_loss(layer: LayerRouting, counted: Tensor) -> Tensor:
    """Return the load-balancing loss of the routed heads: MoH (arXiv 2410.11842), eq. 8."""
    assert layer.heads is not None
    routed = layer.heads.router_probs.shape[1]
    return _balance(layer.heads.selected_heads[:, -routed:], layer.heads.router_probs, counted & layer.runs)


def head_z_loss(layer: LayerRouting, counted: Tensor) -> Tensor:
    """Return the z-loss of the routed heads: ST-MoE (arXiv 2202.08906), eq. 5."""
    assert layer.heads is not None
    return mean_over(layer.heads.router_logits.logsumexp(-1).square(), counted & layer.runs)


def _balance(selected: Tensor, probs: Tensor, counted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return (sum_e 1 / n_e) sum_e n_e f_e P_e of selected and probs, each (N, E); weights n (E,), None for 1."""
    (taken,) = total((selected & counted[:, None]).sum(0))  # (E,)
    share = taken / taken.sum().clamp(min=1)
    if weights is None:
        return len(share) * (share * mean_over(probs, counted)).sum()
    return weights.reciprocal().sum() * (weights * share * mean_over(probs, counted)).sum()


def router_z_loss(layer: LayerRouting, counted: Tensor) -> Tensor:
    """Mean of logsumexp(logits)^2, which keeps the router's logits small: ST-MoE (arXiv 2202.08906), eq. 5."""
    assert layer.routes is not None
    return mean_over(layer.routes.router_logits.logsumexp(-1).square(), counted & layer.runs)


def router_entropy_loss(layer: LayerRouting, counted: Tensor) -> Tensor:
    """Mean entropy of the routing distribution in nats, which pulls towards few experts: Huang et al. 2024, eq. 6."""
    assert layer.routes is not None
    probs = layer.routes.router_probs
    return mean_over(-(probs * probs.clamp(min=1e-30).log()).sum(-1), counted & layer.runs)


def depth_z_loss(layer: LayerRouting, counted: Tensor) -> Tensor:
    """Mean of the squared depth logit, which keeps the score near 1/2, where the gate is a plain residual."""
    assert layer.depth is not None
    return mean_over(layer.depth.logits.square(), counted)


def window_loss(layer: LayerRouting, counted: Tensor) -> Tensor:
    """Mean score of a learned window: Adaptive Attention Span (arXiv 1905.07799), eq. 3, as a share of the largest."""
    assert layer.windows is not None
    assert layer.windows.scores is not None
    return mean_over(layer.windows.scores, counted & layer.runs)


def threshold_loss(model: Transformer, out: ModelOutput, counted: Tensor) -> Tensor | None:
    """Mean over routers of (average units per token - wanted units)^2; units are experts, heads or layers.

    Only routers whose threshold is learned and that no controller holds; None where there is no such router.
    """
    losses = []
    for kind in ("experts", "heads", "depth"):
        for block, layer in zip(model.blocks(), out.routing, strict=True):
            router = router_of(block, kind)
            if router is None or not router.is_budgeted:
                continue
            routes = {"experts": layer.routes, "heads": layer.heads, "depth": layer.depth}[kind]
            assert routes is not None
            assert routes.soft_count is not None
            among = counted if kind == "depth" else counted & layer.runs
            losses.append((mean_over(routes.soft_count, among) - router.target_units).square())
    return torch.stack(losses).mean() if losses else None


def exit_weights_at(config: LossConfig, exit_layers: Sequence[int], step: int, progress: float) -> dict[int, float]:
    """Return the weight of each exit's loss at a step and at `progress` 0..1 of the run.

    The weights sum to 1; an exit that the curriculum does not train yet is left out.

    Source: LayerSkip (arXiv 2404.16710), section 4.1.2 and its two curricula. Departs from it: weights by depth count
    layers from 1, so that an exit after the first has one too.
    """
    active = list(exit_layers)
    if config.exit_curriculum == "rotational":
        active = active[step % len(active) :][:1] if active else []
    elif config.exit_curriculum == "gradual":
        number = 1 + int(2 * progress * len(active))
        active = active[-number:]
    raw = {layer: (layer + 1) * (layer + 2) / 2 if config.exit_weighting == "depth" else 1.0 for layer in active}
    return {layer: weight / sum(raw.values()) for layer, weight in raw.items()}


def exit_losses(
    model: Transformer,
    out: ModelOutput,
    targets: Tensor,
    counted: Tensor,
    weights: Mapping[int, float],
    task_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the losses of the early exits by name, weighted means over the exits.

    `exit_loss` is the cross-entropy of logits(norm(x_l)): LayerSkip (arXiv 2404.16710), eq. 4. `exit_router_loss`,
    where routers decide about leaving, is that of their prediction that the last layer would choose the same token; its
    gradient does not reach the model. `task_weights` (B,) are factors on the cross-entropy of each sequence.
    """
    losses: dict[str, list[Tensor]] = {"exit_loss": [], "exit_router_loss": []}
    for layer, weight in weights.items():
        hidden = out.exit_hidden[layer]
        logits = model.logits(hidden)
        losses["exit_loss"].append(weight * cross_entropy(logits, targets, counted, task_weights))
        if str(layer) in model.exit_routers:
            router = model.exit_routers[str(layer)]
            assert isinstance(router, ExitRouter)
            agrees = agreement_targets(logits.detach(), out.logits.detach())
            wrong = F.binary_cross_entropy_with_logits(router.logits(hidden.detach()), agrees, reduction="none")
            losses["exit_router_loss"].append(weight * mean_over(wrong.flatten(), counted.flatten()))
    return {name: torch.stack(parts).sum() for name, parts in losses.items() if parts}


def training_loss(
    model: Transformer,
    out: ModelOutput,
    targets: Tensor,
    loss_mask: Tensor,
    config: LossConfig,
    exit_weights: Mapping[int, float] | None = None,
    task_weights: Tensor | None = None,
    text_weight: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss to differentiate, (), and its parts by name, unweighted and detached.

    Args:
        model: The model that made `out`.
        out: Its output for the batch.
        targets: (B, T) int64.
        loss_mask: (B, T) bool, the tokens that count, for the auxiliary losses too.
        config: The weights of the losses.
        exit_weights: From `exit_weights_at`; None takes those of the end of the run.
        task_weights: (B,), factors on the cross-entropy of each sequence; None for 1. The part has none.
        text_weight: The weight of the cross-entropy of the text; a teacher has the rest.
    """
    counted = loss_mask.flatten()
    parts = {"cross_entropy": cross_entropy(out.logits, targets, loss_mask)}

    def add(loss: Callable[[LayerRouting, Tensor], Tensor], layers: list[LayerRouting]) -> None:
        if layers:
            parts[loss.__name__] = torch.stack([loss(layer, counted) for layer in layers]).mean()

    routed = [layer for layer in out.routing if layer.routes is not None and model.config.ffn.routing != "relu"]
    for loss in (load_balancing_loss, router_z_loss, router_entropy_loss):
        add(loss, routed)
    add(depth_z_loss, [layer for layer in out.routing if layer.depth is not None])
    for loss in (head_balancing_loss, head_z_loss):
        add(loss, [layer for layer in out.routing if layer.heads is not None])
    add(window_loss, [layer for layer in out.routing if layer.windows and layer.windows.scores is not None])
    l1 = router_l1_loss(model, out, counted)
    if l1 is not None:
        parts["router_l1_loss"] = l1
    budget = threshold_loss(model, out, counted)
    if budget is not None:
        parts["threshold_loss"] = budget
    if out.exit_hidden and (config.exit_loss or (len(model.exit_routers) and config.exit_router_loss)):
        if exit_weights is None:
            exit_weights = exit_weights_at(config, list(out.exit_hidden), 0, 1.0)
        parts.update(exit_losses(model, out, targets, loss_mask, exit_weights, task_weights))
    # the coefficient of the L1 loss adapts, so it has no weight of its own
    strengths: dict[str, Any] = {"cross_entropy": text_weight, "router_l1_loss": 1.0, **config.model_dump()}
    learned = dict(parts)
    if task_weights is not None:
        learned["cross_entropy"] = cross_entropy(out.logits, targets, loss_mask, task_weights)
    total = torch.stack([strengths[name] * part for name, part in learned.items()]).sum()
    return total, {name: part.detach() for name, part in parts.items()}


def mean_over(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of `values` (N, ...) over the tokens that count."""
    weights = counted.view(-1, *[1] * (values.ndim - 1)).float()
    summed, count = total((values * weights).sum(0), weights.sum())
    return summed / count.clamp(min=1)
