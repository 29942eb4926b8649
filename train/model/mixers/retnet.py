"""RetNet: a state with one fixed decay per head. B batch, T time, D width, H heads, W width of a head."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.rope import rotate
from ..config.model import ModelConfig
from ..linear import Linear
from .mixer import Mixer, exact, wide


class RetNet(Mixer):
    """Multi-scale retention.

        S_t = w_h S_{t-1} + v_t k_t^T,  o_t = S_t q_t;   out = W_o (norm(o) * silu(W_g x)),   w_h = 1 - 2^{-5-h}

    q and k are rotated by position, k is divided by sqrt(W), and norm is RMSNorm of each head without a weight.

    Source: Sun et al. 2023 (arXiv 2307.08621), eq. 5-8. Departs from it: values are as wide as keys, RoPE without the
    decay of xPos (which w_h is), and no division by the sum of the scores, which the norm cancels.
    """

    decay: Tensor

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        inner = self.num_heads * self.head_dim
        self.q, self.k, self.v, self.gate = (Linear(config.dim, inner) for _ in range(4))
        self.o = Linear(inner, config.dim)
        self.norm_eps = config.norm_eps
        self.register_buffer("decay", 1 - 2.0 ** (-5 - torch.arange(self.num_heads)))  # (H,), w

    def mix(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """Mix consecutive tokens x (B, T, D) -> (B, T, D)."""
        q, k, v, gate = self.q(x), self.k(x), self.v(x), self.gate(x)
        with exact(x):
            q, k, v = self.heads(q), self.heads(k) * self.head_dim**-0.5, self.heads(v)
            if rotary is not None:
                q, k = (rotate(one.transpose(1, 2), rotary).transpose(1, 2) for one in (q, k))
            o = self.recur(q, k, v, self.decay.log(), gate)
            normed = F.rms_norm(o, o.shape[-1:], eps=self.norm_eps).flatten(2)
            gated = normed * F.silu(wide(gate))
        out: Tensor = self.o(gated)
        return out
