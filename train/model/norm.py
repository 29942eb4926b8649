"""Normalisation of the hidden state: RMSNorm and LayerNorm. D width."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config.model import ModelConfig


def state_norm(config: ModelConfig, present: bool = True) -> nn.Module:
    """Return a norm of the hidden state (..., D), of the kind of the model; one that is not present changes nothing."""
    if not present:
        return nn.Identity()
    return (LayerNorm if config.norm == "layer" else RMSNorm)(config.dim, config.norm_eps)


class LayerNorm(nn.Module):
    """Layer norm over the last axis.

        y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias

    Source: Ba et al. 2016 (arXiv 1607.06450), eq. 4. Unlike `nn.LayerNorm` it casts weight and bias to the dtype of x.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., D) -> (..., D)."""
        return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class RMSNorm(nn.Module):
    """RMS norm over the last axis.

        y = x / sqrt(mean(x^2) + eps) * weight

    Source: Zhang and Sennrich 2019 (arXiv 1910.07467), eq. 4. Unlike `nn.RMSNorm` it casts its weight to the dtype of
    x, which autocast does not do.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., D) -> (..., D) of the same dtype."""
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
        out: Tensor = OnCPU.apply(x, self.weight.to(x.dtype), self.eps)  # type: ignore[no-untyped-call]  # torch's own
        return out


class OnCPU(torch.autograd.Function):
    """RMS norm in fewer passes than torch's, which has about 20 operations on a CPU, forward and backward.

        n = x r,  r = rsqrt(mean(x^2) + eps);  y = n w
        dx = r (g w - n mean(g w n)),  dw = sum of g n

    The backward pass of LayerNorm at mean 0 gives r (g w - n mean(g w n) - mean(g w)). Its last term belongs to the
    mean, which RMS norm does not subtract, so it is added back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Normalise x (..., D) with weight (D,) -> (..., D)."""
        exact = torch.promote_types(x.dtype, torch.float32)
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact).square()
        r = (square / x.shape[-1] + eps).rsqrt()  # (..., 1)
        ctx.save_for_backward(x, weight, r)
        y: Tensor = x * r.to(x.dtype) * weight
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of x and weight, from that of y (..., D)."""
        x, weight, r = ctx.saved_tensors
        wanted = [True, x.dtype != torch.bfloat16, False]  # torch would sum the gradient of the weight in bf16
        of_x, of_weight, _ = torch.ops.aten.native_layer_norm_backward(
            gradient.contiguous(), x, weight.shape, torch.zeros_like(r), r, weight.to(r.dtype), None, wanted
        )
        if x.dtype == torch.bfloat16:
            of_weight = (gradient * (x * r.to(x.dtype))).flatten(0, -2).sum(0, dtype=r.dtype)
        of_mean = (gradient @ weight)[..., None] * (r / x.shape[-1]).to(x.dtype)
        return of_x + of_mean, of_weight.to(weight.dtype), None
