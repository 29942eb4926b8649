"""The choice of the layers that a token runs. N tokens, D width."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.sections import DepthConfig
from ..config.thresholds import levels
from .thresholded_router import Thresholded, TokenShift, keep_gradient, shifted


class DepthRoutes(NamedTuple):
    """The decisions of a depth router for N tokens, each (N,)."""

    logits: Tensor  # float32
    scores: Tensor  # float32
    passes: Tensor  # bool: the score reaches the token's threshold
    gate: Tensor  # float32: factor of the layer's update where it runs
    shift: Tensor | None  # (N,) float32: how far a token's threshold is from the level, in logits
    soft_count: Tensor | None  # (N,) float32: 1 where it passes, with a gradient, where a threshold is learned


class DepthRouter(Thresholded):
    """A router that lets a token run a layer.

        runs = sigmoid(w . rms(x) + b) >= depth_threshold

    The decision is causal: the threshold is constant in a forward pass, or moved by the token itself. A controller
    holds it so that a share `layers_share` of the tokens runs the layer. Source: Mixture-of-Depths, Raposo et al. 2024
    (arXiv 2404.02258). Departs from it: a threshold in place of top-k over the sequence, which depends on later tokens.
    """

    def __init__(self, dim: int, config: DepthConfig, norm_eps: float, layer: int = 0, num_layers: int = 1) -> None:
        level = levels(config.depth_threshold, num_layers)[layer]
        units = (0.0, config.layers_share, 1.0)
        super().__init__(config, level, units, torch.full((2,), 0.5), keeps_below=False)
        self.norm_eps = norm_eps
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.zeros(()))
        self.per_token = TokenShift(dim, config.per_token_reach) if config.per_token else None

    def forward(self, x: Tensor, depth_threshold: Tensor) -> DepthRoutes:
        """Decide for x (N, D) at the level depth_threshold (), in float32 even under autocast.

        The gate is 2 r with r the score, so that the router learns from the tokens it lets through and a score of 1/2
        is a plain residual block. A learned threshold takes its gradient from the same tokens.
        """
        with torch.autocast(x.device.type, enabled=False):
            normed = F.rms_norm(x.float(), x.shape[-1:], eps=self.norm_eps)
            logits = normed @ self.weight.float() + self.bias.float()
            scores = logits.sigmoid()
            shift = self.per_token(normed).squeeze(-1) if self.per_token is not None else None
            limit = shifted(depth_threshold, shift)
            passes, gate, soft_count = (scores >= limit) | (depth_threshold <= 0), 2 * scores, None
            if self.level_logit is not None or shift is not None:
                soft_count = keep_gradient(passes, limit, scores)
                gate = gate * torch.where(passes, soft_count, 0.0)
            return DepthRoutes(logits, scores, passes, gate, shift, soft_count)

    def observe_routes(self, routes: DepthRoutes, shown: Tensor) -> Tensor | None:
        """Show the controllers the tokens of `shown` (N,) bool; return the error of `observe`."""
        scores = shifted(routes.scores, None if routes.shift is None else -routes.shift)
        return self.observe(scores[shown], routes.passes[shown])


def layer_dropout_rate(config: DepthConfig, progress: float) -> float:
    """Return the dropout rate of the last layer at `progress` 0..1 of the run: LayerSkip (arXiv 2404.16710), eq. 3."""
    if config.layer_dropout_curriculum == "constant":
        return config.layer_dropout
    return config.layer_dropout * (math.exp(progress * math.log(2)) - 1)


def dropout_rates(rate: float, layers: int) -> list[float]:
    """Return the rate of each layer, from 0 in the first to `rate` in the last: LayerSkip (arXiv 2404.16710), eq. 2."""
    return [rate * (math.exp(layer * math.log(2) / max(layers - 1, 1)) - 1) for layer in range(layers)]
