"""Root mean square normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis. Source: Zhang and Sennrich 2019 (arXiv 1910.07467), eq. 4.

    Unlike `nn.RMSNorm` it takes its weight along to the dtype of x, which autocast leaves apart.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> (..., D), the same dtype."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
