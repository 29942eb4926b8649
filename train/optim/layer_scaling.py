"""Bidirectional layer scaling: a layer with a large gradient learns slower, one with a small gradient faster."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

LEAST, MOST = 0.3, 3.0
EPS = 1e-6


def layer_of(name: str) -> str:
    """Return the layer of a weight: `layers.N` for all of block N, `embedding`, `head`, or `rest`.

    A whole block is one layer, since its attention and its experts share one residual stream. `rest` is the last norm
    and everything outside the blocks, such as the routers of exits.
    """
    parts = name.split(".")
    if parts[0] == "layers":
        return ".".join(parts[:2])
    return parts[0] if parts[0] in ("embedding", "head") else "rest"


Squares = Callable[[Sequence[tuple[nn.Parameter, Tensor]]], list[Tensor]]
"""(weight, tensor split like the weight) pairs -> the sum of the squares of each tensor, ()."""


def squares_here(tensors: Sequence[tuple[nn.Parameter, Tensor]]) -> list[Tensor]:
    """Sum the squares of each tensor; all of them are whole in this process."""
    return [tensor.float().square().sum() for _, tensor in tensors]


def layer_norms(weights: Iterable[tuple[str, nn.Parameter]], squares: Squares = squares_here) -> dict[str, Tensor]:
    """Return layer -> norm of its gradient, (); layers without a gradient are left out."""
    gradients = [(name, weight, weight.grad) for name, weight in weights if weight.grad is not None]
    return norms_by_layer(gradients, squares)


def norms_by_layer(
    tensors: Sequence[tuple[str, nn.Parameter, Tensor]], squares: Squares = squares_here
) -> dict[str, Tensor]:
    """Return layer -> norm of all tensors of its weights, (); each tensor is split like its weight."""
    by_layer: dict[str, list[Tensor]] = defaultdict(list)
    sums = squares([(weight, tensor) for _, weight, tensor in tensors])
    for (name, _, _), square in zip(tensors, sums, strict=True):
        by_layer[layer_of(name)].append(square)
    return {layer: sum(parts[1:], parts[0]).sqrt() for layer, parts in by_layer.items()}


def factors(norms: dict[str, Tensor], target_norm: float) -> dict[str, float]:
    """Return layer -> factor on its learning rate: clamp(sqrt(target_norm / (norm + eps)), 0.3, 3).

    LARS (arXiv 1708.03888) replaces the norm of a gradient by that of the weight. This scales the rate in both
    directions around a target norm, and only by the square root, so that part of a layer's own gradient norm remains.
    """
    return {layer: min(MOST, max(LEAST, (target_norm / (float(norm) + EPS)) ** 0.5)) for layer, norm in norms.items()}
