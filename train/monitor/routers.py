"""Figures of routers: how evenly and how confidently they choose. N tokens, E experts (or heads)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model.block import LayerRouting
from ..model.output import ModelOutput
from ..system.collectives import total


class RouterFigures(NamedTuple):
    """The figures of one batch."""

    figures: dict[str, Tensor]
    """Name -> (), a mean over tokens."""
    used: dict[str, Tensor]
    """Name -> (E,) float32, tokens that use each."""


def router_figures(out: ModelOutput, scored: Tensor) -> RouterFigures:
    """Measure the routers in one batch, over all ranks.

    There are routers of experts (`router`), of heads (`head_router`) and of depth (`depth_router`, which chooses to run
    a layer or not). Each has `_entropy`, the entropy of its mean distribution, and `_token_entropy`, the mean
    entropy of a token's distribution, both as shares of the entropy of a uniform one. Use is counted under `_load`
    (not for depth); `Loads` makes a figure of it.

    Args:
        out: The output of the model.
        scored: (B, T) bool, the tokens that count.
    """
    result = RouterFigures({}, {})
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
            result.figures[f"{kind}_entropy/layers.{number}"] = entropy(mass / tokens) / even
            result.figures[f"{kind}_token_entropy/layers.{number}"] = entropies / tokens / even
            if selected is not None:
                result.used[f"{kind}_load/layers.{number}"] = used
    return result


def distributions(layer: LayerRouting) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Yield the kind of each router of a layer, its probabilities (N, E), and its selection (N, E)."""
    if layer.routes is not None:
        yield "router", layer.routes.router_probs.detach(), layer.routes.selected
    if layer.heads is not None and layer.heads.router_probs.shape[1] > 1:
        routed = layer.heads.router_probs.shape[1]  # the shared heads stand before
        yield "head_router", layer.heads.router_probs.detach(), layer.heads.selected_heads[:, -routed:]
    if layer.depth is not None:
        scores = layer.depth.scores.detach()
        yield "depth_router", torch.stack([scores, 1 - scores], -1), None


def entropy(probs: Tensor) -> Tensor:
    """Return the entropy in nats, (..., E) -> (...)."""
    return -(probs * probs.clamp(min=1e-30).log()).sum(-1)


class Loads:
    """Count the use of each expert or head in the last `steps` logged steps; part of a checkpoint.

    One step is too few: with a hundred tokens for sixteen experts, some expert often gets none by chance.
    """

    def __init__(self, steps: int, state: Mapping[str, Any] | None = None) -> None:
        self.steps = steps
        self.seen: dict[str, list[list[float]]] = {name: list(each) for name, each in (state or {}).items()}
        """Name -> for each of these steps, the tokens of each expert."""

    def state(self) -> dict[str, list[list[float]]]:
        """Return what a checkpoint stores."""
        return {name: list(each) for name, each in self.seen.items()}

    def observe(self, used: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Add a step; return name -> the load of the least used, as a share of an even load."""
        result = {}
        for name, counts in used.items():
            self.seen[name] = [*self.seen.get(name, ()), list(counts)][-self.steps :]
            summed = [sum(each) for each in zip(*self.seen[name], strict=True)]
            result[name] = min(summed) * len(summed) / max(sum(summed), 1.0)
        return result

    def enough(self, name: str) -> bool:
        """Return whether a load covers all `steps`; True for a figure that is not a load."""
        return name not in self.seen or len(self.seen[name]) >= self.steps
