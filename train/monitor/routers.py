"""Figures of routers: how evenly and how surely they choose. N tokens, E experts (or heads)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..model.block import LayerRouting
from ..model.transformer import ModelOutput
from ..parallel.sums import total


def router_figures(out: ModelOutput, scored: Tensor) -> dict[str, Tensor]:
    """Name -> figure, (), of one batch, over all ranks; scored (B, T) bool are the tokens that count.

    For the routers of experts (`router`), of heads (`head_router`) and of depth (`depth_router`), whose two choices are
    to run a layer or not: `_entropy` of the mean distribution and `_token_entropy`, the mean over tokens, both as
    shares of that of an even one; and `_load` of what is used least, as a share of an even load (not of depth).
    """
    found: dict[str, Tensor] = {}
    for number, layer in enumerate(out.routing):
        counted = (scored.flatten() & layer.runs).float()  # (N,)
        for kind, probs, selected in distributions(layer):
            counts = scored.flatten().float() if kind == "depth_router" else counted
            chosen = probs if selected is None else selected
            tokens, mass, entropies, used = total(
                counts.sum(),
                (probs * counts[:, None]).sum(0),  # (E,)
                (entropy(probs) * counts).sum(),
                (chosen * counts[:, None]).sum(0),  # (E,)
            )
            tokens, even = tokens.clamp(min=1), math.log(max(probs.shape[1], 2))
            found[f"{kind}_entropy/layers.{number}"] = entropy(mass / tokens) / even
            found[f"{kind}_token_entropy/layers.{number}"] = entropies / tokens / even
            if selected is not None:
                found[f"{kind}_load/layers.{number}"] = used.min() * len(used) / used.sum().clamp(min=1)
    return found


def distributions(layer: LayerRouting) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """The kind of each router of a layer, its probabilities (N, E), and what was selected (N, E)."""
    if layer.routes is not None:
        yield "router", layer.routes.router_probs.detach(), layer.routes.selected_experts
    if layer.heads is not None and layer.heads.router_probs.shape[1] > 1:
        routed = layer.heads.router_probs.shape[1]  # the shared heads stand before
        yield "head_router", layer.heads.router_probs.detach(), layer.heads.selected_heads[:, -routed:]
    if layer.depth is not None:
        scores = layer.depth.scores.detach()
        yield "depth_router", torch.stack([scores, 1 - scores], -1), None


def entropy(probs: Tensor) -> Tensor:
    """(..., E) -> (...), nats."""
    return -(probs * probs.clamp(min=1e-30).log()).sum(-1)
