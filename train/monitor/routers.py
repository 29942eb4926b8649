"""Figures of routers: how evenly and how surely they choose. N tokens, E experts (or heads)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model.block import LayerRouting
from ..model.transformer import ModelOutput
from ..system.collectives import total


class RouterFigures(NamedTuple):
    """Of one batch."""

    figures: dict[str, Tensor]
    """Name -> (), a mean over tokens."""
    used: dict[str, Tensor]
    """Name -> (E,) float32, how many tokens use each."""


def router_figures(out: ModelOutput, scored: Tensor) -> RouterFigures:
    """Those of one batch, over all ranks; scored (B, T) bool are the tokens that count.

    For the routers of experts (`router`), of heads (`head_router`) and of depth (`depth_router`), whose two choices are
    to run a layer or not: `_entropy` of the mean distribution and `_token_entropy`, the mean over tokens, both as
    shares of that of an even one. What is used has the name `_load` (not of depth); `Loads` makes a figure of it.
    """
    found = RouterFigures({}, {})
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
            found.figures[f"{kind}_entropy/layers.{number}"] = entropy(mass / tokens) / even
            found.figures[f"{kind}_token_entropy/layers.{number}"] = entropies / tokens / even
            if selected is not None:
                found.used[f"{kind}_load/layers.{number}"] = used
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


class Loads:
    """How often each expert or head was used in the last `steps` logged steps; part of a checkpoint.

    One step says little: of a hundred tokens for sixteen experts some expert often gets none, each time another one.
    """

    def __init__(self, steps: int, state: Mapping[str, Any] | None = None) -> None:
        self.steps = steps
        self.seen: dict[str, list[list[float]]] = {name: list(each) for name, each in (state or {}).items()}
        """Name -> for each of these steps how many tokens used each expert."""

    def state(self) -> dict[str, list[list[float]]]:
        return {name: list(each) for name, each in self.seen.items()}

    def observe(self, used: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Name -> the load of what was used least, as a share of an even load."""
        found = {}
        for name, counts in used.items():
            self.seen[name] = [*self.seen.get(name, ()), list(counts)][-self.steps :]
            summed = [sum(each) for each in zip(*self.seen[name], strict=True)]
            found[name] = min(summed) * len(summed) / max(sum(summed), 1.0)
        return found

    def enough(self, name: str) -> bool:
        """Whether a load is of as many steps as it is to be; also of a figure that is none."""
        return name not in self.seen or len(self.seen[name]) >= self.steps
