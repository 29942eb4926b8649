"""The short convolution over the last tokens. B batch, T time, C channels."""

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
        time, width = x.shape[1], self.weight.shape[1]
        padded = F.pad(x, (0, 0, width - 1, 0))
        out = sum(padded[:, i : i + time] * self.weight[:, i] for i in range(width))
        assert isinstance(out, Tensor)
        return F.silu(out if self.bias is None else out + self.bias)
