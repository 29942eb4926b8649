"""Bidirectional scaling: a layer with a large gradient learns slower, one with a small gradient faster."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

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


def layer_norms(weights: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """layer -> norm of its gradient, (); layers without a gradient are left out."""
    squares: dict[str, list[Tensor]] = defaultdict(list)
    for name, weight in weights:
        if weight.grad is not None:
            squares[layer_of(name)].append(weight.grad.float().square().sum())
    return {layer: sum(parts[1:], parts[0]).sqrt() for layer, parts in squares.items()}


def factors(norms: dict[str, Tensor], target_norm: float) -> dict[str, float]:
    """layer -> clamp(sqrt(target_norm / (norm + eps)), 0.3, 3), the factor on its learning rate.

    LARS (arXiv 1708.03888) only ever trades a gradient's length for the weight's; this moves the rate in both
    directions around a wanted length, and only by the square root, so that a layer keeps part of its own voice.
    """
    return {layer: min(MOST, max(LEAST, (target_norm / (float(norm) + EPS)) ** 0.5)) for layer, norm in norms.items()}
