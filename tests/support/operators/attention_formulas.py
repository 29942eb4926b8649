"""One layer's attention in plain numpy and float64, one token at a time.

D width, H query heads, K key/value heads, W width of a head, P contextual positions.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from reference.routing import rms_norm, sigmoid, softmax

from .attention_layer import EPS, CacheType, Setting, Text
from .operator_formulas import product

Array = NDArray[Any]


class Sequence:
    """The tokens of one text, and the keys and values that they leave, oldest first."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.weights = setting, setting.weights()
        self.keys: list[Array] = []  # (K, W) each
        self.values: list[Array] = []
        self.ran: list[bool] = []
        self.position = 0

    def step(self, x: Array, runs: bool, window: int, head_weights: Array) -> Array:
        """Compute h (D,) of the next token x (D,)."""
        s, position = self.setting, self.position
        self.position += 1
        normed = self.normed_state(x.astype(np.float64), "norm")
        if runs or s.policy != "none":
            keys, values = self.projected("kv", normed).reshape(2, s.num_kv_heads, s.head_dim)
            turned = [self.turned(key, position) for key in self.normed(keys, "k_norm")]
            self.keys.append(np.stack([stored(key, s.cache) for key in turned]))
            self.values.append(np.stack([stored(value, s.cache) for value in values]))
            self.ran.append(runs)
        if not runs:
            return x.astype(np.float64)
        seen = slice(max(len(self.keys) - (window or len(self.keys)), 0), None)
        queries = self.normed(self.projected("q", normed).reshape(s.num_heads, s.head_dim), "q_norm")
        mixed = np.zeros((s.num_heads, s.head_dim))
        for head in np.flatnonzero(head_weights):
            group = head // (s.num_heads // s.num_kv_heads)
            query = self.turned(queries[head], position)
            scores = np.array([key[group] @ query for key in self.keys[seen]]) / np.sqrt(s.head_dim)
            if s.softcap:
                scores = s.softcap * np.tanh(scores / s.softcap)
            if s.positions == "cope":
                scores = scores + self.contextual(query, scores, self.ran[seen])
            shares = softmax(scores)
            mixed[head] = head_weights[head] * (shares @ np.stack([value[group] for value in self.values[seen]]))
        return x + self.normed_state(self.projected("o", mixed.reshape(-1)), "post_norm")

    def normed_state(self, x: Array, name: str) -> Array:
        """Normalise a state (D,), or return it where the layer has no such norm."""
        if name not in self.weights:
            return x
        centred = x - x.mean() if self.setting.norm == "layer" else x
        return np.asarray(rms_norm(centred, EPS, self.weights[name]) + self.weights.get(f"{name}_bias", 0.0))

    def projected(self, name: str, x: Array) -> Array:
        """Multiply x (I,) by a matrix and add its bias, if any: -> (O,)."""
        return np.asarray(product(self.weights[name], x, self.setting.precision) + self.weights.get(f"{name}_bias", 0))

    def normed(self, heads: Array, norm: str) -> Array:
        """Normalise heads (n, W), each by itself or all together."""
        if self.setting.qk_norm == "none":
            return heads
        if self.setting.qk_norm == "full":
            return np.asarray(rms_norm(heads.reshape(-1), EPS, self.weights[norm]).reshape(heads.shape))
        return np.stack([rms_norm(head, EPS, self.weights[norm]) for head in heads])

    def turned(self, head: Array, position: int) -> Array:
        """Rotate a head (W,) under RoPE."""
        if self.setting.positions != "rope":
            return head
        cos, sin = (self.weights[name][position].astype(np.float64) for name in ("cos", "sin"))
        first, second, rest = np.split(head, [self.setting.rotated // 2, self.setting.rotated])
        return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest])

    def contextual(self, query: Array, scores: Array, ran: list[bool]) -> Array:
        """Compute the contextual bias: the sum of gates from each cell to the last one is its position."""
        logits = self.weights["position_embedding"].astype(np.float64) @ query  # (P,)
        gates = np.where(ran if self.setting.counts else True, sigmoid(scores), 0.0)
        positions = np.minimum(np.cumsum(gates[::-1])[::-1], len(logits) - 1)
        return np.interp(positions, np.arange(len(logits)), logits)


def stored(head: Array, cache: CacheType) -> Array:
    """Return what a cache keeps of a key or a value (W,)."""
    if cache == "float32":
        return head
    if cache == "float16":
        return head.astype(np.float32).astype(np.float16).astype(np.float64)
    step = np.abs(head).max() / 127
    return np.asarray(np.rint(head / step) * step)


def attention(setting: Setting, text: Text) -> Array:
    """Compute h (B, T, D) of whole texts."""
    batch, time = text.runs.shape
    h = np.empty(text.x.shape)
    for b in range(batch):
        sequence = Sequence(setting)
        for t in range(time):
            window = int(text.windows[b, t]) if setting.by_token else setting.window
            h[b, t] = sequence.step(text.x[b, t], bool(text.runs[b, t]), window, text.head_weights[b, t])
    return h
