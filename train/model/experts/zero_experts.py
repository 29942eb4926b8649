"""Experts that compute nothing or nearly nothing.

N tokens, D width, Z zero-computation experts: zeros first, then copies, then the K constants.
"""

import torch
from torch import Tensor, nn

from ..config.zero_experts import ZeroExpertsConfig


class ZeroExperts(nn.Module):
    """The zero-computation experts of a layer.

        zero(x) = 0;  copy(x) = x;  constant(x) = a x + (1 - a) v with a = sigmoid(u . x)

    Source: MoE++ (arXiv 2410.07348). Departs from it: one row u in place of two under a softmax, which is the
    same function; the routers have no gating residuals, since a layer may not have run for a token.
    """

    def __init__(self, dim: int, config: ZeroExpertsConfig) -> None:
        super().__init__()
        self.zeros, self.copies = config.zeros, config.copies
        self.mix = nn.Parameter(torch.empty(config.constants, dim)) if config.constants else None  # (K, D)
        self.constants = nn.Parameter(torch.empty(config.constants, dim)) if config.constants else None  # (K, D)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Add up the outputs of x (N, D) with the routing weights (N, Z): -> (N, D) float32, also under autocast."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            first = self.zeros + self.copies
            kept = weights[:, self.zeros : first].sum(-1, keepdim=True)  # (N, 1), the factor of x
            if self.mix is None or self.constants is None:
                return kept * x
            own = weights[:, first:]  # (N, K)
            share = (x @ self.mix.float().t()).sigmoid()  # (N, K)
            kept = kept + (own * share).sum(-1, keepdim=True)
            return kept * x + (own * (1 - share)) @ self.constants.float()
