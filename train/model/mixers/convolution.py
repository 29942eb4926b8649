"""The short convolution over the last tokens. B batch, T time, C channels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ShortConvolution(nn.Module):
    """A causal convolution of each channel by itself, followed by silu.

    y_t = silu(sum over i < width of weight_i x_{t - width + 1 + i} + bias)
    """

    def __init__(self, channels: int, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, width))  # (C, width), for the oldest token first
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve consecutive tokens x (B, T, C) float32 -> (B, T, C); those before the first are 0."""
        out: Tensor = Convolve.apply(x, self.weight)  # type: ignore[no-untyped-call]  # torch's own
        return F.silu(out if self.bias is None else out + self.bias)


class Convolve(torch.autograd.Function):
    """The convolution alone, in fewer passes than autograd's, whose gradient of each shifted copy is filled with zeros.

        y_t = sum over i of w_i x_{t - i};   dx_t = sum of w_i g_{t + i},  dw_i = sum over t of g_t x_{t - i}

    Here i counts back from the newest token, weight `width - 1 - i`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve x (B, T, C) with weight (C, width) -> (B, T, C)."""
        ctx.save_for_backward(x, weight)
        y = x * weight[:, -1]
        for back in range(1, min(weight.shape[1], x.shape[1])):
            y[:, back:].addcmul_(x[:, :-back], weight[:, -1 - back])
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x and weight, from that of y (B, T, C)."""
        x, weight = ctx.saved_tensors
        time, width = x.shape[1], weight.shape[1]
        of_x = gradient * weight[:, -1]
        of_weight = torch.zeros_like(weight)
        of_weight[:, -1] = (gradient * x).sum((0, 1))
        for back in range(1, min(width, time)):
            of_x[:, :-back].addcmul_(gradient[:, back:], weight[:, -1 - back])
            of_weight[:, -1 - back] = (gradient[:, back:] * x[:, :-back]).sum((0, 1))
        return of_x, of_weight
