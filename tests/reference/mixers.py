"""Mixers with a recurrent state of the plain model, one token and one head at a time.

D width, H heads, W width of a head's keys and of its values. Everything here is for one token: x is (D,), a key (W,).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from reference.rope import turned
from reference.routing import Weights, rms_norm, sigmoid, state_norm

if TYPE_CHECKING:
    from adaptive_lm.train.model import ModelConfig
    from reference.model import Result


class Mixer:
    """One layer's mixer over one text. `states` is (H, W, W): a row for each component of the value.

    `inputs` are those of the convolution, oldest first, only of tokens that ran the layer. `length` counts the tokens
    that ran it; under `project` it counts all, as a cache would.
    """

    def __init__(self, weights: Weights, config: ModelConfig, layer: int, dtype: type) -> None:
        self.weights, self.config, self.layer, self.dtype = weights, config, layer, dtype
        self.H, self.W = config.num_heads, config.recurrence.head_dim or config.resolved_head_dim
        self.states = np.zeros((self.H, self.W, self.W), dtype)
        self.inputs: list[np.ndarray] = []
        self.length = 0

    def step(self, x: np.ndarray, position: int, _result: Result, _at: tuple[int, int, int]) -> np.ndarray:
        """Mix a token that runs the layer: x before the norm (D,) -> (D,), before the norm of the output."""
        self.length += 1
        return self.mix(state_norm(self.weights, self.config, f"layers.{self.layer}.attention_norm", x), position)

    def write(self, _x: np.ndarray, _position: int, counted: bool) -> None:
        """Let a token pass that skips the layer: the state stays as it is."""
        assert not counted
        self.length += 1

    def mix(self, x: np.ndarray, position: int) -> np.ndarray:
        """Mix a normed token x (D,) -> (D,)."""
        raise NotImplementedError

    def recur(
        self,
        head: int,
        r: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        w: np.ndarray,
        a: np.ndarray | None = None,
        b: np.ndarray | None = None,
    ) -> np.ndarray:
        """Update the state of a head: S <- S diag(w) + (S a) b^T + v k^T, and return S r (W,); w is () or (W,)."""
        S = self.states[head]
        new = S * w + np.outer(v, k)
        if a is not None and b is not None:
            new = new + np.outer(S @ a, b)
        self.states[head] = new
        return new @ r

    def convolve(self, x: np.ndarray) -> np.ndarray:
        """Return silu(sum over the last tokens i of weight_i x_i + bias) of the channels x (C,)."""
        weight = self.weights.get(f"layers.{self.layer}.mixer.conv.weight")  # (C, tokens), oldest first
        if weight is not None:
            self.inputs.append(x)
            x = self.weights.get(f"layers.{self.layer}.mixer.conv.bias", np.zeros_like(x))
            for back, past in enumerate(reversed(self.inputs)):
                if back < weight.shape[1]:
                    x = x + weight[:, -1 - back] * past
        return silu(x)

    def of(self, name: str) -> np.ndarray:
        """Return a weight of the mixer by its name."""
        return self.weights[f"layers.{self.layer}.mixer.{name}"]

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        """Compute W x."""
        return self.of(f"{name}.weight") @ x

    def heads(self, name: str, x: np.ndarray) -> np.ndarray:
        """Compute W x by heads, (H, W)."""
        return self.linear(name, x).reshape(self.H, self.W)


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


class RetNet(Mixer):
    """Retention, Sun et al. 2023 (arXiv 2307.08621), with values as wide as keys."""

    def mix(self, x: np.ndarray, position: int) -> np.ndarray:
        q, k, v, gate = (self.heads(name, x) for name in ("q", "k", "v", "gate"))
        rope, out = self.config.rope_of(self.layer), []
        for head in range(self.H):
            key = k[head] / np.sqrt(self.dtype(self.W))
            query, key = (turned(one, position, rope, self.config.context_length) for one in (q[head], key))
            decay = self.dtype(1 - 2.0 ** (-5 - head))
            o = self.recur(head, query, key, v[head], decay)
            out.append(rms_norm(o, self.config.norm_eps) * silu(gate[head]))
        return self.linear("o", np.concatenate(out))


class Mamba2(Mixer):
    """State-space duality, Dao and Gu 2024 (arXiv 2405.21060), with one B and one C for all heads."""

    def mix(self, x: np.ndarray, _position: int) -> np.ndarray:
        inner, W = self.H * self.W, self.W
        z, rest, dt = np.split(self.linear("in", x), [inner, 2 * inner + 2 * W])
        values, B, C = np.split(self.convolve(rest), [inner, inner + W])
        out = []
        for head, value in enumerate(values.reshape(self.H, W)):
            step = np.logaddexp(0, dt[head] + self.of("dt_bias")[head])  # softplus
            decay = np.exp(-step * np.exp(self.of("A_log")[head]))
            out.append(self.recur(head, C, B, step * value, decay) + self.of("D")[head] * value)
        gated = np.concatenate(out) * silu(z)
        return self.linear("o", rms_norm(gated, self.config.norm_eps, self.of("norm.weight")))
