"""RWKV-7: a state with a decay for each key component, and a key that is removed. B batch, T time, D width, H heads.

W width of a head, R inner width of the low-rank matrices.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.model import ModelConfig
from ..linear import Linear
from ..norm import LayerNorm
from .delta_rule import LONGEST_CHUNK, chunked_delta
from .kernels import run_kernel
from .mixer import Mixer, exact, wide
from .recurrence import recurrent

STRONGEST_DECAY = math.exp(-0.5)
"""Largest -log w of a token."""
NORM_EPS = 64e-5
"""Term added to the variance of a head."""
LERPS = ("r", "w", "k", "v", "a", "g")


class RWKV7(Mixer):
    """Time mixing of RWKV-7.

        x_c = x + mu_c (x' - x) for c in r, w, k, v, a, g;  x' is the token before, 0 at the start
        w = exp(-e^{-1/2} sigmoid(w0 + W_2 tanh(W_1 x_w))),  a = sigmoid(a0 + A_2 A_1 x_a),  g = G_2 sigmoid(G_1 x_g)
        kappa = normalize(k * k_k),  k~ = k * (1 + (a - 1) * k_a)
        S_t = S_{t-1} (diag(w_t) - kappa_t (a_t * kappa_t)^T) + v_t k~_t^T,  o_t = S_t r_t
        out = W_o ((norm(o) + (r . (k~ * r_k)) v) * g)

    r, k and v are W_r x_r, W_k x_k and W_v x_v; norm is LayerNorm of each head, with weight and bias.

    Source: Peng et al. 2025 (arXiv 2503.14456), section 4 and appendix; first values as in its training code. Departs
    from it: the values of the first layer are not mixed into those of the others, so that layers stay independent; the
    low-rank matrices have one inner width.
    """

    drawn = (
        *(f"mu_{name}" for name in LERPS),
        *("w0", "w1.weight", "w2.weight", "a0", "a1.weight", "a2.weight", "g1.weight", "g2.weight"),
        *("k_k", "k_a", "r_k", "k.weight", "norm.weight"),
    )

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        dim, inner, rank = config.dim, self.num_heads * self.head_dim, config.recurrence.resolved_rank(config.dim)
        self.mu_r, self.mu_w, self.mu_k, self.mu_v, self.mu_a, self.mu_g = (_vector(dim) for _ in LERPS)
        self.r, self.k, self.v = (Linear(dim, inner) for _ in range(3))
        self.w1, self.a1, self.g1 = (Linear(dim, rank) for _ in range(3))
        self.w2, self.a2, self.g2 = (Linear(rank, inner) for _ in range(3))
        self.w0, self.a0, self.k_k, self.k_a, self.r_k = (_vector(inner) for _ in range(5))
        self.norm = LayerNorm(inner, NORM_EPS)
        self.o = Linear(inner, dim)
        self.num_layers, self.chunk = config.num_layers, min(self.chunk, LONGEST_CHUNK)

    def mix(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """Mix consecutive tokens x (B, T, D) -> (B, T, D)."""
        before = F.pad(x, (0, 0, 1, 0))[:, :-1]
        x_r, x_w, x_k, x_v, x_a, x_g = self.lerps(x, before)
        r, k, v = self.r(x_r), self.k(x_k), self.v(x_v)
        w, a, g = self.w2(self.w1(x_w).tanh()), self.a2(self.a1(x_a)), self.g2(self.g1(x_g).sigmoid())
        with exact(x):
            log_w = -STRONGEST_DECAY * (wide(w) + self.w0).sigmoid()
            a, k = (wide(a) + self.a0).sigmoid(), wide(k)
            kappa = F.normalize(self.heads(k * self.k_k), dim=-1, eps=1e-12)
            k = k + k * (a - 1) * self.k_a
            r, log_w, k, v, a = (self.heads(one) for one in (r, log_w, k, v, a))  # (B, T, H, W)
            o = self.recur_delta(r, k, v, log_w, -kappa, a * kappa, g)
            bonus = (r * k * self.r_k.view(k.shape[2:])).sum(-1, keepdim=True) * v
            y = self.normed(o) + bonus.flatten(2)
            gated = y * wide(g)
        out: Tensor = self.o(gated)
        return out

    def lerps(self, x: Tensor, before: Tensor) -> tuple[Tensor, ...]:
        """Mix each token x (B, T, D) with the one before it, in six ways -> six times (B, T, D)."""
        mu = torch.stack([self.mu_r, self.mu_w, self.mu_k, self.mu_v, self.mu_a, self.mu_g]).to(x.dtype)
        return torch.addcmul(x, before - x, mu[:, None, None]).unbind()

    def recur_delta(self, r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, a: Tensor, b: Tensor, like: Tensor) -> Tensor:
        """Run the recurrence for inputs (B, T, H, W) -> (B, T, H, W).

        The device and dtype of `like`, a projection of the input, decide whether a kernel runs.
        """
        if self.plain:
            return recurrent(r, k, v, log_w, a, b)[0]
        if self.kernels(like):
            return run_kernel("delta", like.dtype, r, k, v, log_w, a, b)
        return chunked_delta(r, k, v, log_w, a, b, self.chunk)[0]

    def normed(self, o: Tensor) -> Tensor:
        """Normalise each head of o (B, T, H, W) -> (B, T, H W)."""
        return F.layer_norm(o, o.shape[-1:], eps=self.norm.eps).flatten(2) * self.norm.weight + self.norm.bias

    @torch.no_grad()
    def draw(self) -> None:
        """Draw what the authors' training code draws by its own rules."""
        along, passed = self.layer / max(1, self.num_layers - 1), self.layer / self.num_layers
        share = torch.arange(len(self.mu_r)) / len(self.mu_r)
        for name, power in zip(LERPS, (0.2, 0.9, 0.7, 0.7, 0.9, 0.2), strict=True):
            getattr(self, f"mu_{name}").copy_(1 - share ** (power * (1 - passed)))
        inner = len(self.w0)
        even = torch.linspace(0, 1, inner)
        within = torch.linspace(-1, 1, self.head_dim).repeat(self.num_heads)
        zigzag = within * within.abs()
        self.w0.copy_(-5.5 + 6 * even ** (1 + along**0.3) + 2.5 * zigzag)
        self.a0.copy_(-0.19 + 0.3 * zigzag + 0.4 * (even - 0.5))
        self.k_k.copy_(0.71 - 0.1 * (even - 0.5))
        self.k_a.fill_(1.02)
        self.r_k.fill_(-0.04)
        for first, second in ((self.w1, self.w2), (self.a1, self.a2), (self.g1, self.g2)):
            first.weight.zero_()
            nn.init.orthogonal_(second.weight, gain=0.1)
        self.k.weight.normal_(std=0.1 * self.k.in_features**-0.5)
        self.norm.weight.fill_(((self.layer + 1) / self.num_layers) ** 0.7)


def _vector(size: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(size))
