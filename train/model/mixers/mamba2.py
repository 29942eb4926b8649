"""Mamba-2: a state with a decay that each token chooses. B batch, T time, D width, H heads, W width of a head."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.model import ModelConfig
from ..linear import Linear
from ..norm import RMSNorm
from .convolution import ShortConvolution
from .mixer import Mixer, exact, first_steps, wide

RATES = (1.0, 16.0)
"""Range of exp(A_log) at the start, drawn evenly."""


class Mamba2(Mixer):
    """State-space duality.

        z | x | B | C | dt = W_in u;   x | B | C through the short convolution and silu;   dt = softplus(dt + dt_bias)
        S_t = exp(-dt exp(A_log)) S_{t-1} + dt x B^T;   o_t = S_t C + D x;   out = W_o norm(o * silu(z))

    All heads share B and C; norm is RMSNorm over all heads.

    Source: Dao and Gu 2024 (arXiv 2405.21060), section 7, with the values at the start of its code. Departs from it:
    the heads together are as wide as `num_heads` times their width, without a factor of expansion, and the state is as
    wide as a head.
    """

    drawn: ClassVar[tuple[str, ...]] = ("A_log", "dt_bias", "D")

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        inner, keys = self.num_heads * self.head_dim, self.head_dim
        self.sizes = [inner, inner + 2 * keys, self.num_heads]  # z, x | B | C, dt
        self.add_module("in", Linear(config.dim, sum(self.sizes)))
        width = config.recurrence.conv
        self.conv = ShortConvolution(self.sizes[1], width, bias=True) if width > 1 else None
        self.A_log, self.dt_bias, self.D = (nn.Parameter(torch.empty(self.num_heads)) for _ in range(3))  # (H,)
        self.norm = RMSNorm(inner, config.norm_eps)
        self.o = Linear(inner, config.dim)

    def mix(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """Mix consecutive tokens x (B, T, D) -> (B, T, D)."""
        inputs = self._modules["in"]  # by its key: torch.compile cannot guard an attribute whose name is a keyword
        assert inputs is not None
        projected: Tensor = inputs(x)
        with exact(x):
            z, rest, dt = torch.split(wide(projected), self.sizes, -1)
            rest = F.silu(rest) if self.conv is None else self.conv(rest)
            inner, B, C = torch.split(rest, [self.sizes[0], self.head_dim, self.head_dim], -1)
            dt = F.softplus(dt + self.dt_bias)  # (B, T, H)
            inner = self.heads(inner)  # (B, T, H, W)
            o = self.recur(C[:, :, None], B[:, :, None], dt[..., None] * inner, -dt * self.A_log.exp(), projected)
            o = (o + self.D[:, None] * inner).flatten(2)
            normed = self.norm(o * F.silu(z))
        out: Tensor = self.o(normed)
        return out

    @torch.no_grad()
    def draw(self) -> None:
        """Draw decays and steps, so that heads remember from a few tokens to about a thousand."""
        self.dt_bias.copy_(first_steps(self.num_heads))
        self.A_log.copy_(torch.empty(self.num_heads).uniform_(*RATES).log())
        self.D.fill_(1)
