"""The third definition of the model, and the judge of the other two: plain numpy, one token at a time, with a cache.

Written from the formulas and the routing rules, and slow on purpose: what a fast version folds stands here as a loop.

    B batch, T time, L layers, D width, H query heads, K key/value heads, W width of a head, E experts,
    F hidden width of an expert, V vocabulary. Here one token is in hand: x is (D,), P is (E,).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from adaptive_lm.train.model import ModelConfig

NEAR_TIE = 1e-5  # a decision with a smaller margin may fall either way in float32; such tokens are counted
FP32_TOLERANCE = 5e-5  # the largest difference of a logit (of size 10) between float32 and this file in float64
Weights = Mapping[str, np.ndarray]  # by their names in torch's state_dict


class Thresholds(NamedTuple):
    """One value a layer, each (L,)."""

    router_top_p: np.ndarray
    depth_threshold: np.ndarray
    exit_threshold: np.ndarray  # 1: nobody leaves


@dataclass
class Result:
    """What the model said and decided for ids (B, T)."""

    logits: np.ndarray  # (B, T, V)
    selected_experts: np.ndarray  # (L, B, T, E) bool; all false in a skipped layer; a dense FFN is expert 0 of 1
    layers_run: np.ndarray  # (L, B, T) bool
    exit_layer: np.ndarray  # (B, T) int64: the layer after which a token left, else -1
    cache_lengths: np.ndarray  # (L, B) int64: tokens whose keys the layer holds
    margins: dict[str, np.ndarray]  # name -> (L, B, T): distance to the decision's border, inf where none was taken

    def near_ties(self, epsilon: float = NEAR_TIE) -> np.ndarray:
        """(B, T) bool: some decision of this token stood closer to its border than `epsilon`."""
        return (np.array(list(self.margins.values())) < epsilon).any((0, 1))


def forward(
    weights: Weights, config: ModelConfig, ids: np.ndarray, thresholds: Thresholds, dtype: type = np.float64
) -> Result:
    """ids (B, T) int -> Result; all arithmetic in `dtype`."""
    (B, T), L, E = ids.shape, config.num_layers, config.num_experts
    cast = {name: np.asarray(array, dtype) for name, array in weights.items()}
    result = Result(
        logits=np.zeros((B, T, config.vocab_size), dtype),
        selected_experts=np.zeros((L, B, T, E), bool),
        layers_run=np.zeros((L, B, T), bool),
        exit_layer=np.full((B, T), -1),
        cache_lengths=np.zeros((L, B), np.int64),
        margins={name: np.full((L, B, T), np.inf) for name in ("expert_mass", "expert_rank", "depth", "exit")},
    )
    for b in range(B):
        sequence = Sequence(cast, config, thresholds, dtype)
        for t in range(T):
            sequence.step(int(ids[b, t]), t, result, b)
        result.cache_lengths[:, b] = [len(keys) for keys in sequence.keys]
    return result


class Sequence:
    """One text, read token by token. `keys[l]` and `values[l]` are the cache of layer l, a list of (K, W)."""

    def __init__(self, weights: Weights, config: ModelConfig, thresholds: Thresholds, dtype: type) -> None:
        self.weights, self.config, self.thresholds, self.dtype = weights, config, thresholds, dtype
        self.keys: list[list[np.ndarray]] = [[] for _ in range(config.num_layers)]
        self.values: list[list[np.ndarray]] = [[] for _ in range(config.num_layers)]

    def step(self, id: int, position: int, result: Result, b: int) -> None:
        """The next token: writes its logits and all its decisions into `result` at [b, position].

        A token runs a layer if it has not left and its score is at least the threshold (no depth router: always).
        A layer that it does not run leaves x as it is; its keys and values stay out of the cache (`none`) or are
        written from the frozen x (`project`). After an exit layer, run or skipped, a token sure of the next one leaves.
        """
        x, here = self.weights["embedding.weight"][id], True
        for layer in range(self.config.num_layers):
            at = (layer, b, position)
            runs, score = here, 0.5
            if here and self.config.has_depth_router(layer):
                score, threshold = self.depth_score(layer, x), self.thresholds.depth_threshold[layer]
                runs = bool(score >= threshold)
                result.margins["depth"][at] = abs(score - threshold)
            if runs:
                h = x + self.attention(layer, x, position)
                out = h + self.feed_forward(layer, h, result, at)
                x = x + 2 * score * (out - x) if self.config.has_depth_router(layer) else out
                result.layers_run[at] = True
            elif self.config.depth.skipped_kv == "project":
                self.write_keys_values(layer, x, position)
            if here and layer in self.config.depth.exit_layers:
                surest = softmax(self.head(x)).max()
                here = not surest > self.thresholds.exit_threshold[layer]
                result.margins["exit"][at] = abs(surest - self.thresholds.exit_threshold[layer])
                result.exit_layer[b, position] = -1 if here else layer
        result.logits[b, position] = self.head(x)

    def attention(self, layer: int, x: np.ndarray, position: int) -> np.ndarray:
        """softmax(norm(q) norm(k)^T / sqrt(W)) v over this layer's cache, this token now in it; (D,) -> (D,)."""
        H, K, W = self.config.num_heads, self.config.num_kv_heads, self.config.width_of_head
        name, heads = f"layers.{layer}.attention", []
        self.write_keys_values(layer, x, position)
        normed = self.norm(x, f"layers.{layer}.attention_norm.weight")
        q = (self.weights[f"{name}.q.weight"] @ normed).reshape(H, W)
        for head in range(H):
            query = self.rotate(self.norm(q[head], f"{name}.q_norm.weight"), position)  # (W,)
            group = head // (H // K)  # H / K neighbouring query heads share one key/value head
            scores = np.array([query @ key[group] for key in self.keys[layer]], self.dtype) / np.sqrt(self.dtype(W))
            shares = softmax(scores)
            heads.append(sum(share * value[group] for share, value in zip(shares, self.values[layer], strict=True)))
        return self.weights[f"{name}.o.weight"] @ np.concatenate(heads)

    def write_keys_values(self, layer: int, x: np.ndarray, position: int) -> None:
        """Appends this token's keys, turned to its place in the text (not in the cache), and values to the cache."""
        name, K, W = f"layers.{layer}.attention", self.config.num_kv_heads, self.config.width_of_head
        normed = self.norm(x, f"layers.{layer}.attention_norm.weight")
        k, v = (self.weights[f"{name}.kv.weight"] @ normed).reshape(2, K, W)
        self.keys[layer].append(np.stack([self.rotate(self.norm(key, f"{name}.k_norm.weight"), position) for key in k]))
        self.values[layer].append(v)

    def rotate(self, x: np.ndarray, position: int) -> np.ndarray:
        """(W,) -> (W,): component i and component i + W/2 are turned by position * theta^(-2i/W)."""
        W = self.config.width_of_head
        out = np.empty_like(x)
        for i in range(W // 2):
            angle = position * self.config.rope_theta ** (-2 * i / W)
            cos, sin = self.dtype(np.cos(angle)), self.dtype(np.sin(angle))
            out[i], out[i + W // 2] = x[i] * cos - x[i + W // 2] * sin, x[i] * sin + x[i + W // 2] * cos
        return out

    def feed_forward(self, layer: int, h: np.ndarray, result: Result, at: tuple[int, int, int]) -> np.ndarray:
        """y = sum over selected e of g_e E_e(h), plus the shared expert; or the one dense FFN. (D,) -> (D,)"""
        h = self.norm(h, f"layers.{layer}.ffn_norm.weight")
        name, y = f"layers.{layer}.moe", np.zeros_like(h)
        if self.config.ffn.routing == "dense":
            result.selected_experts[at] = True
            return self.ffn(f"layers.{layer}.ffn", h)
        for expert, weight in self.router(layer, h, result, at).items():
            gate, up = np.split(h @ self.weights[f"{name}.gate_up"][expert], 2)  # (D, 2F), gate first
            y = y + weight * ((silu(gate) * up) @ self.weights[f"{name}.down"][expert])
            result.selected_experts[(*at, expert)] = True
        return y + self.ffn(f"{name}.shared", h) if self.config.ffn.shared_expert_dim else y

    def router(self, layer: int, h: np.ndarray, result: Result, at: tuple[int, int, int]) -> dict[int, float]:
        """P = softmax(W h); experts in order of P until they hold the mass router_top_p, or k of them -> {expert: g}"""
        P = softmax(self.weights[f"layers.{layer}.moe.router.weight"] @ h)  # (E,)
        ranked = sorted(range(len(P)), key=lambda expert: -P[expert])  # stable: of equals the lower number first
        selected, mass, limit = ranked[:1], P[ranked[0]], self.thresholds.router_top_p[layer]
        for rank, expert in enumerate(ranked[1:], start=1):
            taken = rank < self.config.ffn.experts_per_token
            if self.config.ffn.routing == "top_p":
                taken = mass < limit or limit >= 1  # 1 keeps every expert, whatever rounding makes of the mass
                if limit < 1:
                    result.margins["expert_mass"][at] = min(result.margins["expert_mass"][at], abs(mass - limit))
            if not taken:  # the mass only grows: nor will any of the others be
                result.margins["expert_rank"][at] = P[selected[-1]] - P[expert]
                break
            selected.append(expert)
            mass = mass + P[expert]
        total = sum(P[expert] for expert in selected) if self.config.ffn.renormalize else 1
        return {expert: P[expert] / total for expert in selected}

    def depth_score(self, layer: int, x: np.ndarray) -> float:
        """sigmoid(w . rms(x) + b)"""
        name = f"layers.{layer}.depth_router"
        return 1 / (1 + np.exp(-(self.weights[f"{name}.weight"] @ self.norm(x) + self.weights[f"{name}.bias"])))

    def ffn(self, name: str, h: np.ndarray) -> np.ndarray:
        """SwiGLU: y = (silu(h Wg) * (h Wu)) Wd"""
        gate, up = np.split(self.weights[f"{name}.gate_up.weight"] @ h, 2)
        return self.weights[f"{name}.down.weight"] @ (silu(gate) * up)

    def head(self, x: np.ndarray) -> np.ndarray:
        """(D,) -> logits (V,)"""
        name = "embedding.weight" if self.config.tie_embeddings else "head.weight"
        return self.weights[name] @ self.norm(x, "norm.weight")

    def norm(self, x: np.ndarray, name: str | None = None) -> np.ndarray:
        """x / sqrt(mean(x^2) + eps), times the weight of that name"""
        return x / np.sqrt(np.mean(x * x) + self.dtype(self.config.norm_eps)) * (self.weights[name] if name else 1)


def softmax(z: np.ndarray) -> np.ndarray:
    exponentials = np.exp(z - z.max())
    return exponentials / exponentials.sum()


def silu(z: np.ndarray) -> np.ndarray:
    return z / (1 + np.exp(-z))
