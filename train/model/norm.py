"""Root mean square normalisation."""

from __future__ import annotations

from typing import Any

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
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
        out: Tensor = OnCPU.apply(x, self.weight.to(x.dtype), self.eps)  # type: ignore[no-untyped-call]  # torch's own
        return out


class OnCPU(torch.autograd.Function):
    """RMS norm by fewer passes: torch puts it together from some twenty operations there, forward and backward.

        n = x r,  r = rsqrt(mean(x^2) + eps);  y = n w
        dx = r (g w - n mean(g w n)),  dw = sum of g n

    The backward pass of LayerNorm at mean 0 gives r (g w - n mean(g w n) - mean(g w)); what it takes off for the mean,
    which is none of ours, is put back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x (..., D), weight (D,) -> (..., D)"""
        exact = torch.promote_types(x.dtype, torch.float32)
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact).square()
        r = (square / x.shape[-1] + eps).rsqrt()  # (..., 1)
        ctx.save_for_backward(x, weight, r)
        y: Tensor = x * r.to(x.dtype) * weight
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, r = ctx.saved_tensors
        wanted = [True, x.dtype != torch.bfloat16, False]  # its sum over the rows is kept in bf16 there
        of_x, of_weight, _ = torch.ops.aten.native_layer_norm_backward(
            gradient.contiguous(), x, weight.shape, torch.zeros_like(r), r, weight.to(r.dtype), None, wanted
        )
        if x.dtype == torch.bfloat16:
            of_weight = (gradient * (x * r.to(x.dtype))).flatten(0, -2).sum(0, dtype=r.dtype)
        of_mean = (gradient @ weight)[..., None] * (r / x.shape[-1]).to(x.dtype)
        return of_x + of_mean, of_weight.to(weight.dtype), None
