"""Bidirectional scaling: a layer with a large gradient learns slower, one with a small gradient faster."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

LEAST, MOST = 0.3, 3.0
EPS = 1e-6


def layer_of(name: str) -> str:
    """The layer that a weight belongs to: `layers.N` for all of block N, `embedding`, `head`, and `rest`.

    The whole block is one layer, since attention and experts of a block work on one residual stream; `rest` is the last
    norm and what stands beside the blocks, such as the routers of exits.
    """
    parts = name.split(".")
    if parts[0] == "layers":
        return ".".join(parts[:2])
    return parts[0] if parts[0] in ("embedding", "head") else "rest"


Squares = Callable[[Sequence[tuple[nn.Parameter, Tensor]]], list[Tensor]]
"""Weights and tensors that lie as they do -> the sum of the squares of each, ()."""


def squares_here(tensors: Sequence[tuple[nn.Parameter, Tensor]]) -> list[Tensor]:
    """Of tensors that lie whole in this process."""
    return [tensor.float().square().sum() for _, tensor in tensors]


def layer_norms(weights: Iterable[tuple[str, nn.Parameter]], squares: Squares = squares_here) -> dict[str, Tensor]:
    """layer -> norm of its gradient, (); layers without a gradient are left out."""
    gradients = [(name, weight, weight.grad) for name, weight in weights if weight.grad is not None]
    return norms_by_layer(gradients, squares)


def norms_by_layer(
    tensors: Sequence[tuple[str, nn.Parameter, Tensor]], squares: Squares = squares_here
) -> dict[str, Tensor]:
    """layer -> norm, (), of all tensors of its weights; each lies as its weight does."""
    by_layer: dict[str, list[Tensor]] = defaultdict(list)
    found = squares([(weight, tensor) for _, weight, tensor in tensors])
    for (name, _, _), square in zip(tensors, found, strict=True):
        by_layer[layer_of(name)].append(square)
    return {layer: sum(parts[1:], parts[0]).sqrt() for layer, parts in by_layer.items()}


def factors(norms: dict[str, Tensor], target_norm: float) -> dict[str, float]:
    """layer -> clamp(sqrt(target_norm / (norm + eps)), 0.3, 3), the factor on its learning rate.

    LARS (arXiv 1708.03888) only ever trades a gradient's length for the weight's; this moves the rate in both
    directions around a wanted length, and only by the square root, so that a layer keeps part of its own voice.
    """
    return {layer: min(MOST, max(LEAST, (target_norm / (float(norm) + EPS)) ** 0.5)) for layer, norm in norms.items()}
