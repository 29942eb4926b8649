"""The third definition of the model, which the other two are compared with: plain numpy, token by token, with a cache.

Written from the formulas and the routing rules. It is slow on purpose: loops instead of fused operations.
Attention is in attention.py, mixers with a state in mixers.py and delta.py, the
rules of choosing in routing.py.

    B batch, T time, L layers, D width, H query heads, K key/value heads, W width of a head, E experts,
    F hidden width of an expert, V vocabulary. Everything here is for one token: x is (D,), P is (E,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reference.attention import Attention
from reference.delta import RWKV7, GatedDelta
from reference.mixers import Mamba2, Mixer, RetNet
from reference.routing import (
    Weights,
    choose_best,
    choose_by_mass,
    choose_candidates,
    choose_positive,
    confidence,
    per_token_limit,
    rms_norm,
    sigmoid,
    softmax,
    state_norm,
)

if TYPE_CHECKING:
    from adaptive_lm.train.model import ModelConfig

MIXERS: dict[str, type[Mixer]] = {"gated_delta": GatedDelta, "mamba2": Mamba2, "retnet": RetNet, "rwkv7": RWKV7}
NEAR_TIE = 1e-5  # a decision with a smaller margin may fall either way in float32; such tokens are counted
FP32_TOLERANCE = 5e-5  # the largest difference of a logit (of size 10) between float32 and this file in float64
MARGINS = ("expert_mass", "expert_rank", "expert_ratio", "depth", "exit", "head_limit", "head_rank", "window")


class ThresholdArrays(NamedTuple):
    """One value a layer, each (L,)."""

    router_top_p: np.ndarray
    depth_threshold: np.ndarray
    exit_threshold: np.ndarray  # 1: no token leaves
    head_top_p: np.ndarray | None = None  # None: 1 in every layer, all heads
    router_ratio: np.ndarray | None = None  # None: 0 in every layer


@dataclass
class Result:
    """Outputs and decisions of the model for ids (B, T)."""

    logits: np.ndarray  # (B, T, V)
    selected_experts: np.ndarray  # (L, B, T, E) bool; all false in a skipped layer; a dense FFN is expert 0 of 1
    zero_experts: np.ndarray  # (L, B, T, Z) bool: the zero-computation experts that a token chose
    # (L, B, T, H) bool; all false in a skipped layer or one without attention, all true where heads are not routed
    selected_heads: np.ndarray
    windows: np.ndarray  # (L, B, T) int64: the token's window, its own place included; 0 where none, or skipped
    layers_run: np.ndarray  # (L, B, T) bool
    exit_layer: np.ndarray  # (B, T) int64: the layer after which a token left, else -1
    cache_lengths: np.ndarray  # (L, B) int64: tokens whose keys the layer holds, those behind every window too;
    # of a mixer with a state, those that ran it, and under `project` all
    margins: dict[str, np.ndarray]  # name -> (L, B, T): distance to the decision's border, inf where none was taken

    def near_ties(self, epsilon: float = NEAR_TIE) -> np.ndarray:
        """(B, T) bool: some decision of this token stood closer to its border than `epsilon`."""
        return (np.array(list(self.margins.values())) < epsilon).any((0, 1))


def forward(
    weights: Weights, config: ModelConfig, ids: np.ndarray, thresholds: ThresholdArrays, dtype: type = np.float64
) -> Result:
    """Compute the result for ids (B, T) int, with all arithmetic in `dtype`."""
    (B, T), L, E = ids.shape, config.num_layers, config.num_experts
    cast = {name: np.asarray(array, dtype) for name, array in weights.items()}
    result = Result(
        logits=np.zeros((B, T, config.vocab_size), dtype),
        selected_experts=np.zeros((L, B, T, E), bool),
        zero_experts=np.zeros((L, B, T, config.ffn.zero_experts.total), bool),
        selected_heads=np.zeros((L, B, T, config.num_heads), bool),
        windows=np.zeros((L, B, T), np.int64),
        layers_run=np.zeros((L, B, T), bool),
        exit_layer=np.full((B, T), -1),
        cache_lengths=np.zeros((L, B), np.int64),
        margins={name: np.full((L, B, T), np.inf) for name in MARGINS},
    )
    for b in range(B):
        sequence = Sequence(cast, config, thresholds, dtype)
        for t in range(T):
            sequence.step(int(ids[b, t]), t, result, b)
        result.cache_lengths[:, b] = [mixer.length for mixer in sequence.mixers]
    return result


class Sequence:
    """One text, read token by token.

    `keys[l]` and `values[l]` are the cache of layer l, lists of (K, W); none in a layer whose mixer has a state.
    """

    def __init__(self, weights: Weights, config: ModelConfig, thresholds: ThresholdArrays, dtype: type) -> None:
        weights = with_repetitions(weights, config)
        self.weights, self.config, self.thresholds, self.dtype = weights, config, thresholds, dtype
        levels = np.ones(config.num_layers) if thresholds.head_top_p is None else thresholds.head_top_p
        self.mixers: list[Attention | Mixer] = [
            Attention(weights, config, layer, level, dtype)
            if config.attends(layer)
            else MIXERS[config.mixer_of(layer)](weights, config, layer, dtype)
            for layer, level in enumerate(levels)
        ]

    @property
    def keys(self) -> list[list[np.ndarray]]:
        return [mixer.keys if isinstance(mixer, Attention) else [] for mixer in self.mixers]

    @property
    def values(self) -> list[list[np.ndarray]]:
        return [mixer.values if isinstance(mixer, Attention) else [] for mixer in self.mixers]

    def step(self, id: int, position: int, result: Result, b: int) -> None:
        """Read the next token; write its logits and all its decisions into `result` at [b, position].

        A token runs a layer if it has not left and its score reaches the threshold (without a depth router: always).
        A layer that it does not run leaves x as it is; its keys and values stay out of the cache (`none`) or are
        written from the frozen x (`project`). After an exit layer, run or skipped, a token that is sure enough leaves.
        """
        x, here, going = self.embed(id, position), True, True
        for layer in range(self.config.num_layers):
            at = (layer, b, position)
            follows = self.config.depth.layers_share < 1 and layer in self.config.recursion.repeated
            runs, score = here and (going or not follows), 0.5
            if runs and self.config.has_depth_router(layer):
                score, threshold = self.depth_score(layer, x)
                runs = bool(score >= threshold)
                result.margins["depth"][at] = abs(score - threshold)
            if self.config.has_depth_router(layer):
                going = runs
            if runs:
                name = f"layers.{layer}"
                h = x + self.norm(self.mixers[layer].step(x, position, result, at), f"{name}.attention_post_norm")
                inner = x if self.config.parallel_residual else h
                out = h + self.norm(self.feed_forward(layer, inner, result, at), f"{name}.ffn_post_norm")
                x = x + 2 * score * (out - x) if self.config.has_depth_router(layer) else out
                result.layers_run[at] = True
            elif self.config.depth.skipped_kv == "project":
                self.mixers[layer].write(x, position, counted=False)
            if here and layer in self.config.depth.exit_layers:
                sure, threshold = self.confidence(layer, x), self.thresholds.exit_threshold[layer]
                here = not sure > threshold
                result.margins["exit"][at] = abs(sure - threshold)
                result.exit_layer[b, position] = -1 if here else layer
        result.logits[b, position] = self.head(x)

    def feed_forward(self, layer: int, h: np.ndarray, result: Result, at: tuple[int, int, int]) -> np.ndarray:
        """Return the sum over selected e of g_e E_e(h), plus the shared expert; or the dense FFN. (D,) -> (D,)."""
        h, ffn = self.norm(h, f"layers.{layer}.ffn_norm"), self.config.ffn
        name, y, first = f"layers.{layer}.moe", np.zeros_like(h), "gate_up" if ffn.gated else "up"
        if ffn.routing == "dense" or layer in ffn.dense_layers:
            result.selected_experts[(*at, 0)] = True
            return self.ffn(f"layers.{layer}.ffn", h)
        for expert, weight in self.router(layer, h, result, at).items():
            if expert >= ffn.num_experts:
                y = y + weight * self.zero_expert(name, expert - ffn.num_experts, h)
                result.zero_experts[(*at, expert - ffn.num_experts)] = True
                continue
            hidden = h @ self.weights[f"{name}.{first}"][expert]  # (D, 2F), gate first, or (D, F)
            if ffn.bias:
                hidden = hidden + self.weights[f"{name}.{first}_bias"][expert]
            out = self.inner(hidden) @ self.weights[f"{name}.down"][expert]
            if ffn.bias:
                out = out + self.weights[f"{name}.down_bias"][expert]
            y = y + weight * out
            result.selected_experts[(*at, expert)] = True
        if not ffn.shared_expert_dim:
            return y
        gate = sigmoid(self.weights[f"{name}.shared_gate.weight"][0] @ h) if ffn.shared_gate else 1
        return y + gate * self.ffn(f"{name}.shared", h)

    def zero_expert(self, name: str, number: int, h: np.ndarray) -> np.ndarray:
        """Return the output of a zero-computation expert: zeros come first, then copies, then constants."""
        zero = self.config.ffn.zero_experts
        constant = number - zero.zeros - zero.copies
        if constant < 0:
            return h if number >= zero.zeros else np.zeros_like(h)
        share = sigmoid(self.weights[f"{name}.zero_experts.mix"][constant] @ h)
        return share * h + (1 - share) * self.weights[f"{name}.zero_experts.constants"][constant]

    def router(self, layer: int, h: np.ndarray, result: Result, at: tuple[int, int, int]) -> dict[int, float]:
        """Choose experts in order of P = softmax(W h) until the mass router_top_p, or k of them: {expert: g}.

        Under `relu`, P = relu(W h), and only experts of positive P can be chosen.
        """
        name, ffn = f"layers.{layer}.moe.router", self.config.ffn
        z = self.weights[f"{name}.weight"] @ h + (self.weights[f"{name}.bias"] if ffn.router_bias else 0)
        P = softmax(z) if ffn.score == "softmax" else sigmoid(z)  # (E,)
        if ffn.routing == "relu":
            chosen = choose_positive(z, self.thresholds.router_top_p[layer])
            result.margins["expert_mass"][at] = chosen.limit_margin
            result.margins["expert_rank"][at] = chosen.rank_margin
            return {expert: z[expert] for expert in chosen.chosen}
        S = P + self.weights[f"{name}.selection_bias"] if ffn.selection_bias else P  # decides the order, and no more
        if ffn.routing == "top_p":
            limit = self.thresholds.router_top_p[layer]
            if ffn.per_token:
                limit = per_token_limit(self.weights, name, h, ffn.per_token_reach, limit)
            if ffn.most_experts or ffn.score == "sigmoid" or ffn.selection_bias:
                ratio = 0 if self.thresholds.router_ratio is None else self.thresholds.router_ratio[layer]
                choice = choose_candidates(P, S, ffn.most_experts or len(P), limit, ratio)
                result.margins["expert_ratio"][at] = choice.ratio_margin
            else:
                choice = choose_by_mass(P, limit)
        else:
            choice = choose_best(S, int(ffn.experts_per_token))
        result.margins["expert_mass"][at], result.margins["expert_rank"][at] = choice.limit_margin, choice.rank_margin
        total = sum(P[expert] for expert in choice.chosen) if ffn.renormalize else 1
        return {expert: P[expert] / total for expert in choice.chosen}

    def depth_score(self, layer: int, x: np.ndarray) -> tuple[float, float]:
        """Return sigmoid(w . rms(x) + b), and the threshold that this token has to reach."""
        name, depth, z = f"layers.{layer}.depth_router", self.config.depth, rms_norm(x, self.config.norm_eps)
        score = sigmoid(self.weights[f"{name}.weight"] @ z + self.weights[f"{name}.bias"])
        level = self.thresholds.depth_threshold[layer]
        if depth.per_token:
            level = per_token_limit(self.weights, name, z, depth.per_token_reach, level)
        return score, level

    def confidence(self, layer: int, x: np.ndarray) -> float:
        """Return the confidence of a token after an exit layer: from its logits there, or sigmoid(w . norm(x) + b)."""
        criterion, name = self.config.depth.exit_criterion, f"exit_routers.{layer}"
        if criterion == "router":
            z = self.norm(x, "norm")
            return sigmoid(self.weights[f"{name}.weight"] @ z + self.weights[f"{name}.bias"])
        return confidence(criterion, self.head(x))

    def ffn(self, name: str, h: np.ndarray) -> np.ndarray:
        """Compute y = (act(h Wg) * (h Wu)) Wd, or y = act(h Wu) Wd; SwiGLU where act is silu."""
        hidden = self.linear(f"{name}.{'gate_up' if self.config.ffn.gated else 'up'}", h)
        return self.linear(f"{name}.down", self.inner(hidden))

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        """Compute W x + b."""
        return self.weights[f"{name}.weight"] @ x + self.weights.get(f"{name}.bias", 0)

    def inner(self, hidden: np.ndarray) -> np.ndarray:
        """Compute act(gate) * up of gate|up (2F,), or act(up) of (F,)."""
        act = ACTIVATIONS[self.config.ffn.activation]
        if not self.config.ffn.gated:
            return act(hidden)
        gate, up = np.split(hidden, 2)
        return act(gate) * up

    def head(self, x: np.ndarray) -> np.ndarray:
        """Return the logits (V,) of x (D,)."""
        name = "embedding.weight" if self.config.tie_embeddings else "head.weight"
        logits, cap = self.weights[name] @ self.norm(x, "norm"), self.config.logits_softcap
        return cap * np.tanh(logits / cap) if cap else logits

    def embed(self, id: int, position: int) -> np.ndarray:
        """Return the first state (D,) of a token."""
        x = self.dtype(self.config.embedding_scale) * self.weights["embedding.weight"][id]
        return x + self.weights["learned_positions"][position] if self.config.attention.positions == "learned" else x

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return state_norm(self.weights, self.config, name, x)


def with_repetitions(weights: Weights, config: ModelConfig) -> Weights:
    """Give a layer that repeats another one the weights of that layer; it has a depth router of its own."""
    repeated = {}
    for layer in config.recursion.repeated:
        source = f"layers.{config.recursion.source_of(layer)}."
        for name, array in weights.items():
            if name.startswith(source) and "depth_router" not in name:
                repeated[f"layers.{layer}.{name.removeprefix(source)}"] = array
    return {**weights, **repeated}


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "silu": lambda z: z * sigmoid(z),
    "gelu": lambda z: z * np.array([0.5 * (1 + math.erf(each / math.sqrt(2))) for each in z], z.dtype),
    "gelu_tanh": lambda z: z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2,
    "relu": lambda z: np.maximum(z, 0),
}
