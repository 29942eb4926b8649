"""Which layers a token runs. N tokens, D width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import DepthConfig
from .controller import QuantileController


class DepthRouter(nn.Module):
    """A layer runs for a token when sigmoid(w . rms(x) + b) >= depth_threshold.

    Per token and causal: the threshold is a constant of the forward pass, held by a quantile controller so that a share
    `layers_share` of the tokens runs the layer. Source: Mixture-of-Depths, Raposo et al. 2024 (arXiv 2404.02258).
    Departs from it: a threshold in place of top-k over the sequence, which looks to the right.
    """

    def __init__(self, dim: int, config: DepthConfig, norm_eps: float) -> None:
        super().__init__()
        self.layers_share = config.layers_share
        self.norm_eps = norm_eps
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.zeros(()))
        self.controller = QuantileController(torch.full((2,), 0.5), config.ema)

    def default_threshold(self) -> Tensor:
        """The threshold in force, () float32."""
        return self.controller.threshold(1.0 - self.layers_share)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, D) -> logits (N,) and scores (N,), both float32 whatever autocast says."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            logits = F.rms_norm(x, x.shape[-1:], eps=self.norm_eps) @ self.weight.float() + self.bias.float()
            return logits, logits.sigmoid()
