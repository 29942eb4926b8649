"""Gradient clipping: by a fixed norm, by a percentile of recent norms, or row by row."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .optimizer_config import OptimizerConfig

LEAST_WEIGHT = 1e-3
"""Smallest norm that a row of weights counts as, so that a row of zeros can change (AGC, eq. 3)."""


class Clipping:
    """One of the three methods of `optimizer.clip`; `history` is part of a checkpoint."""

    def __init__(
        self,
        config: OptimizerConfig,
        history: Sequence[float] = (),
        norm_of: Callable[[Sequence[nn.Parameter]], Tensor] | None = None,
    ) -> None:
        """Begin with the norms in `history`.

        Args:
            config: method and limits.
            history: norms of earlier accepted steps, oldest first.
            norm_of: norm of the gradients of weights that are split over ranks (`Placement.norm`).
        """
        self.config = config
        self.norm_of = norm_of or norm_here
        self.history = deque(history, config.clip_window if config.clip == "percentile" else 0)
        """Norms before clipping of the last accepted steps; empty except under `percentile`."""

    def limit(self, norm: float) -> float:
        """Return the largest norm after clipping of a gradient whose norm is `norm`."""
        if self.config.clip == "percentile":
            recent = [*self.history, norm] if math.isfinite(norm) else list(self.history)
            return float(np.percentile(recent, self.config.clip_percentile)) if recent else math.inf
        if self.config.clip == "norm":
            return self.config.clip_norm or math.inf
        return math.inf

    def clip(self, weights: Iterable[tuple[str, nn.Parameter]]) -> float:
        """Clip the gradients in place and return their joint norm before clipping."""
        moved = [(name, weight) for name, weight in weights if weight.grad is not None]
        norm = self.norm_of([weight for _, weight in moved])
        before = float(norm)
        if not math.isfinite(before):
            return before  # the step is skipped
        if self.config.clip == "agc":
            for name, weight in moved:
                if not name.startswith("head."):  # as in the paper: not the last layer
                    clip_rows(weight, self.config.clip_share)
        elif (limit := self.limit(before)) < math.inf:
            torch.nn.utils.clip_grads_with_norm_([weight for _, weight in moved], limit, norm)
        return before

    def accept(self, norm: float) -> None:
        """Remember the norm of an accepted step."""
        self.history.append(norm)


def norm_here(weights: Sequence[nn.Parameter]) -> Tensor:
    """Return the joint norm, (), of the gradients of weights that are whole in this process."""
    return torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])


@torch.no_grad()
def clip_rows(weight: nn.Parameter, share: float) -> None:
    """Clip adaptively: G_i <- G_i min(1, share max(|W_i|, 1e-3) / |G_i|) for each output i of the weight.

    Source: Brock et al. 2021 (arXiv 2102.06171), eq. 3. An output is a row (out, in), a column of each expert in a
    stack (E, in, out), and the whole of anything of one dimension.
    """
    assert weight.grad is not None
    allowed = share * length_of_rows(weight).clamp(min=LEAST_WEIGHT)
    weight.grad.mul_((allowed / length_of_rows(weight.grad).clamp(min=1e-30)).clamp(max=1.0))


def length_of_rows(weight: Tensor) -> Tensor:
    """Return the norms of the rows, in a shape that broadcasts against the weight: (out, 1), (E, 1, out) or ()."""
    deep = weight.ndim > 1
    norms: Tensor = torch.linalg.vector_norm(weight, dim=1 if deep else None, keepdim=deep)
    return norms
