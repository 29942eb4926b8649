"""RWKV-7 and the gated delta rule of the plain model, one token and one head at a time.

D width, H heads, W width of a head's keys and of its values. Everything here is for one token: x is (D,), a key (W,).
"""

from __future__ import annotations

import numpy as np

from reference.mixers import Mixer, silu
from reference.routing import rms_norm, sigmoid


class GatedDelta(Mixer):
    """Gated DeltaNet, Yang et al. 2024 (arXiv 2412.06464), eq. 10, with values as wide as keys."""

    def mix(self, x: np.ndarray, position: int) -> np.ndarray:
        q, k, v = self.convolve(np.concatenate([self.linear(name, x) for name in "qkv"])).reshape(3, self.H, self.W)
        gate, out = self.heads("gate", x), []
        for head in range(self.H):
            query, key = unit(q[head]) / np.sqrt(self.dtype(self.W)), unit(k[head])
            step = softplus(self.linear("a_proj", x)[head] + self.of("dt_bias")[head])
            alpha = np.exp(-np.exp(self.of("A_log")[head]) * step)
            beta = sigmoid(self.linear("b_proj", x)[head])
            o = self.recur(head, query, key, beta * v[head], alpha, -alpha * beta * key, key)
            out.append(rms_norm(o, self.config.norm_eps, self.of("norm.weight")) * silu(gate[head]))
        return self.linear("o", np.concatenate(out))


class RWKV7(Mixer):
    """Time mixing of RWKV-7, Peng et al. 2025 (arXiv 2503.14456), without the values of the first layer."""

    def mix(self, x: np.ndarray, position: int) -> np.ndarray:
        before = self.inputs[-1] if self.inputs else np.zeros_like(x)
        self.inputs.append(x)
        x_r, x_w, x_k, x_v, x_a, x_g = (x + self.of(f"mu_{name}") * (before - x) for name in "rwkvag")
        r, v = self.heads("r", x_r), self.heads("v", x_v)
        decay = sigmoid(self.of("w0") + self.linear("w2", np.tanh(self.linear("w1", x_w))))
        w = np.exp(-np.exp(self.dtype(-0.5)) * decay).reshape(self.H, self.W)
        rate = sigmoid(self.of("a0") + self.linear("a2", self.linear("a1", x_a)))
        gate = self.linear("g2", sigmoid(self.linear("g1", x_g)))
        k = self.linear("k", x_k)
        removal = (k * self.of("k_k")).reshape(self.H, self.W)
        k, rate = (k * (1 + (rate - 1) * self.of("k_a"))).reshape(self.H, self.W), rate.reshape(self.H, self.W)
        weight, bias = (self.of(f"norm.{name}").reshape(self.H, self.W) for name in ("weight", "bias"))
        bonus, out = self.of("r_k").reshape(self.H, self.W), []
        for head in range(self.H):
            kappa = removal[head] / max(np.sqrt((removal[head] ** 2).sum()), self.dtype(1e-12))
            o = self.recur(head, r[head], k[head], v[head], w[head], -kappa, rate[head] * kappa)
            normed = (o - o.mean()) / np.sqrt(o.var() + self.dtype(64e-5)) * weight[head] + bias[head]
            out.append(normed + (r[head] * k[head] * bonus[head]).sum() * v[head])
        return self.linear("o", np.concatenate(out) * gate)


def unit(x: np.ndarray) -> np.ndarray:
    """Return x (W,) with length 1."""
    return x / np.sqrt((x**2).sum() + x.dtype.type(1e-6))


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, x.dtype.type(0))
