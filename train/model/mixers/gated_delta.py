"""The gated delta rule: a state that forgets, and that replaces the value of a key. B batch, T time, D width, H heads.

W width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.model import ModelConfig
from ..linear import Linear
from ..norm import RMSNorm
from .convolution import ShortConvolution
from .delta_rule import LONGEST_CHUNK, chunked_gated_delta
from .kernels import run_kernel
from .mixer import Mixer, exact, first_steps, wide
from .recurrence import recurrent

RATES = (1e-3, 16.0)
"""Range of exp(A_log) at the start, drawn evenly."""


class GatedDelta(Mixer):
    """The gated delta rule (Gated DeltaNet).

        S_t = alpha_t S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T,  o_t = S_t q_t / sqrt(W)
        alpha = exp(-exp(A_log) softplus(W_a x + dt_bias)),  beta = sigmoid(W_b x)
        out = W_o (norm(o) * silu(W_g x))

    q, k and v go through a short causal convolution and silu, then q and k are divided by their length; norm is RMSNorm
    of each head with one weight (W,) for all.

    Source: Yang et al. 2024 (arXiv 2412.06464), eq. 10 and section 3.4. Departs from it: values are as wide as keys.
    """

    drawn = ("A_log", "dt_bias")

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        inner, width = self.num_heads * self.head_dim, config.recurrence.conv
        self.q, self.k, self.v, self.gate = (Linear(config.dim, inner) for _ in range(4))
        self.conv = ShortConvolution(3 * inner, width, bias=False) if width > 1 else None
        self.a_proj, self.b_proj = (Linear(config.dim, self.num_heads) for _ in range(2))
        self.A_log, self.dt_bias = (nn.Parameter(torch.empty(self.num_heads)) for _ in range(2))
        self.norm = RMSNorm(self.head_dim, config.norm_eps)
        self.o = Linear(inner, config.dim)
        self.chunk = min(self.chunk, LONGEST_CHUNK)

    def mix(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """Mix consecutive tokens x (B, T, D) -> (B, T, D)."""
        qkv, gate = torch.cat([self.q(x), self.k(x), self.v(x)], -1), self.gate(x)
        a, b = self.a_proj(x), self.b_proj(x)
        with exact(x):
            qkv = F.silu(wide(qkv)) if self.conv is None else self.conv(wide(qkv))
            q, k, v = (self.heads(one) for one in qkv.chunk(3, -1))  # (B, T, H, W)
            q, k = unit(q) * self.head_dim**-0.5, unit(k)
            log_alpha = -self.A_log.exp() * F.softplus(wide(a) + self.dt_bias)  # (B, T, H)
            o = self.recur_delta(q, k, v, log_alpha, wide(b).sigmoid(), gate)
            gated = self.norm(o).flatten(2) * F.silu(wide(gate))
        out: Tensor = self.o(gated)
        return out

    def recur_delta(self, q: Tensor, k: Tensor, v: Tensor, log_alpha: Tensor, beta: Tensor, like: Tensor) -> Tensor:
        """Run the recurrence for q, k, v (B, T, H, W), log_alpha and beta (B, T, H) -> (B, T, H, W).

        The device and dtype of `like`, a projection of the input, decide whether a kernel runs.
        """
        if self.plain:
            a = -(log_alpha.exp() * beta)[..., None] * k
            return recurrent(q, k, beta[..., None] * v, log_alpha, a, k)[0]
        if self.kernels(like):
            return run_kernel("gated_delta", like.dtype, q, k, v, log_alpha, beta)
        return chunked_gated_delta(q, k, v, log_alpha, beta, self.chunk)[0]

    @torch.no_grad()
    def draw(self) -> None:
        """Draw the decays as the authors' code does."""
        self.A_log.copy_(torch.empty(self.num_heads).uniform_(*RATES).log())
        self.dt_bias.copy_(first_steps(self.num_heads))


def unit(x: Tensor) -> Tensor:
    """Divide vectors (..., K) by their length."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
