"""Attention of the plain model: choice of heads, positions, windows and the cache, one token at a time.

D width, H query heads, K key/value heads, W width of a head, S shared heads, R = H - S routed heads,
P CoPE positions. Everything here is for one token: x is (D,), a query (W,).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from reference.rope import turned
from reference.routing import (
    Choice,
    Weights,
    choose_best,
    choose_by_complexity,
    choose_by_mass,
    per_token_limit,
    predicted,
    rms_norm,
    sigmoid,
    softmax,
    state_norm,
)

if TYPE_CHECKING:
    from adaptive_lm.train.model import ModelConfig
    from reference.model import Result

WINDOW_SIZES = 15  # sizes of a learned window, from its least to its most


class Attention:
    """One layer's attention over one text, with its cache, a list of all tokens, oldest first.

    `keys` and `values` are (K, W) each; `counted` is whether the token ran this layer, so that CoPE counts it.
    """

    def __init__(self, weights: Weights, config: ModelConfig, layer: int, head_top_p: float, dtype: type) -> None:
        self.weights, self.config, self.layer, self.head_top_p, self.dtype = weights, config, layer, head_top_p, dtype
        self.name = f"layers.{layer}.attention"
        self.keys: list[np.ndarray] = []
        self.values: list[np.ndarray] = []
        self.counted: list[bool] = []

    def step(self, x: np.ndarray, position: int, result: Result, at: tuple[int, int, int]) -> np.ndarray:
        """Attend for a token that runs the layer: x before the norm (D,) -> (D,), before the norm of the output.

        The sum over its heads i of weight_i W_o,i softmax(q_i k^T / sqrt(W) + position) v, over its window. Heads and
        window are written into `result` at [at].
        """
        self.write(x, position, counted=True)
        normed, W = self.normed(x), self.config.resolved_head_dim
        visible = self.visible(normed, result, at)
        q = (self.weights[f"{self.name}.q.weight"] @ normed).reshape(self.config.num_heads, W)
        out = np.zeros_like(x)
        q = self.normed_heads(q + self.bias("q").reshape(q.shape), "q_norm")
        for head, weight in self.heads(normed, result, at).items():
            query = q[head]
            group = head // (self.config.num_heads // self.config.num_kv_heads)  # neighbouring heads share keys
            shares = softmax(self.scores(query, group, visible, position))
            mixed = sum(share * self.values[j][group] for share, j in zip(shares, visible, strict=True))
            out = out + weight * (self.weights[f"{self.name}.o.weight"][:, head * W : (head + 1) * W] @ mixed)
            result.selected_heads[(*at, head)] = True
        return out + self.bias("o")

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return len(self.keys)

    def write(self, x: np.ndarray, position: int, counted: bool) -> None:
        """Append this token's keys, rotated by its position in the text (not in the cache), and values to the cache."""
        K, W = self.config.num_kv_heads, self.config.resolved_head_dim
        normed = self.normed(x)
        k, v = (self.weights[f"{self.name}.kv.weight"] @ normed + self.bias("kv")).reshape(2, K, W)
        self.keys.append(np.stack([self.turn(key, position) for key in self.normed_heads(k, "k_norm")]))
        self.values.append(v)
        self.counted.append(counted)

    def scores(self, query: np.ndarray, group: int, visible: list[int], position: int) -> np.ndarray:
        """Score an unrotated query (W,) with the keys of one group, at each place in `visible`."""
        rotated = self.turn(query, position)
        scores = np.array([rotated @ self.keys[j][group] for j in visible], self.dtype)
        scores = scores / np.sqrt(self.dtype(self.config.resolved_head_dim))
        if cap := self.dtype(self.config.attention.softcap):
            scores = cap * np.tanh(scores / cap)
        return scores + self.cope(query, scores, visible) if self.positions == "cope" else scores

    @property
    def positions(self) -> str:
        return self.config.positions_of(self.layer)

    def turn(self, x: np.ndarray, position: int) -> np.ndarray:
        """Rotate (W,) by position where the layer does so."""
        return turned(x, position, self.config.rope_of(self.layer), self.config.context_length)

    def cope(self, query: np.ndarray, scores: np.ndarray, visible: list[int]) -> np.ndarray:
        """Return the contextual position bias of the scores at the places in `visible`.

        Gates are summed from right to left: the distance of place j is the sum of the gates sigmoid(score) from j to
        this token, at most P - 1. A token that did not run this layer has no gate. Between two whole distances the
        logits q . e are interpolated. Source: Golovneva et al. 2024 (arXiv 2405.18719), eq. 3-5.
        """
        logits = self.weights[f"{self.name}.position_embedding"] @ query  # (P,)
        bias, passed = np.zeros_like(scores), self.dtype(0)
        for n in reversed(range(len(visible))):
            if self.counted[visible[n]]:
                passed = passed + sigmoid(scores[n])
            distance = min(passed, self.dtype(len(logits) - 1))
            below, above = math.floor(distance), math.ceil(distance)
            part = distance - below
            bias[n] = logits[below] * (1 - part) + logits[above] * part
        return bias

    def visible(self, normed: np.ndarray, result: Result, at: tuple[int, int, int]) -> list[int]:
        """Return the places in the cache, oldest first, that the newest token sees: those within its window."""
        place = len(self.keys) - 1
        if not self.config.window_of(self.layer):
            return list(range(place + 1))
        window = self.window(normed, place, result, at)
        result.windows[at] = window
        return [j for j in range(place + 1) if j == place or place - j < window]

    def window(self, normed: np.ndarray, place: int, result: Result, at: tuple[int, int, int]) -> int:
        """Return the window of the token at a place of the cache, itself included."""
        attention, most = self.config.attention, self.config.window_of(self.layer)
        if attention.window_kind == "length":
            return min(max(math.ceil(attention.window_share * (place + 1)), attention.window_least), most)
        if attention.window_kind == "entropy":
            return int(self.weights[f"{self.name}.window_controller.window"])
        if attention.window_kind == "learned":
            router = f"{self.name}.window_router"
            score = WINDOW_SIZES * sigmoid(self.weights[f"{router}.weight"] @ normed + self.weights[f"{router}.bias"])
            border = min(max(round(score), 1), WINDOW_SIZES - 1)  # 0 and 1 themselves are no borders
            result.margins["window"][at] = abs(score - border) / WINDOW_SIZES
            level = min(math.floor(score), WINDOW_SIZES - 1)
            return attention.window_least + level * (most - attention.window_least) // (WINDOW_SIZES - 1)
        return most

    def heads(self, normed: np.ndarray, result: Result, at: tuple[int, int, int]) -> dict[int, float]:
        """Return the heads that this token uses, and the factors of their outputs.

        P = softmax of the logits of the R routed heads. Of those chosen, head i weighs m P_i / (sum of P chosen), m
        their average number. Shared heads weigh S times their own softmax; a token balances shared and routed heads.
        Source: MoH, Jin et al. 2024 (arXiv 2410.11842), eq. 4-6. Departs from it: m is a constant of the model, so
        that no weight jumps when one more head joins.
        """
        H, S, routing = self.config.num_heads, self.config.heads.shared_heads, self.config.heads.routing
        if routing == "all":
            return dict.fromkeys(range(H), self.dtype(1))
        logits = self.weights[f"{self.name}.head_router.weight"] @ normed  # (H,), shared heads first
        P = softmax(logits[S:])
        choice = self.choose(P, normed)
        result.margins["head_limit"][at], result.margins["head_rank"][at] = choice.limit_margin, choice.rank_margin
        of_shared, of_routed = self.dtype(1), self.dtype(1)
        if S:
            of_shared, of_routed = 2 * softmax(self.weights[f"{self.name}.head_router.balance"] @ normed)
        total = sum(P[i] for i in choice.chosen)
        m = self.dtype(self.config.heads_per_token - S)
        shared = {i: of_shared * S * share for i, share in enumerate(softmax(logits[:S]))} if S else {}
        return shared | {S + i: of_routed * m * P[i] / total for i in sorted(choice.chosen)}

    def choose(self, P: np.ndarray, normed: np.ndarray) -> Choice:
        """Choose among the routed heads by their probabilities P (R,)."""
        heads, router = self.config.heads, f"{self.name}.head_router"
        if heads.routing == "top_k":
            return choose_best(P, int(self.config.heads_per_token) - heads.shared_heads)
        if heads.routing == "top_p":
            limit = self.head_top_p
            if heads.per_token:
                limit = per_token_limit(self.weights, router, normed, heads.per_token_reach, limit)
            return choose_by_mass(P, limit)
        complexity = predicted(self.weights, router, normed)
        return choose_by_complexity(P, self.head_top_p, complexity, self.config.least_heads, self.config.most_heads)

    def normed(self, x: np.ndarray) -> np.ndarray:
        return state_norm(self.weights, self.config, f"layers.{self.layer}.attention_norm", x)

    def bias(self, matrix: str) -> np.ndarray:
        """Return the bias of `q`, `kv` or `o`; zeros where the model has none."""
        outputs = self.weights[f"{self.name}.{matrix}.weight"].shape[0]
        return self.weights.get(f"{self.name}.{matrix}.bias", np.zeros(outputs, self.dtype))

    def normed_heads(self, heads: np.ndarray, norm: str) -> np.ndarray:
        """Normalise heads (n, W): each by itself, or all of them as one vector."""
        name, kind = f"{self.name}.{norm}.weight", self.config.attention.qk_norm
        if kind == "none":
            return heads
        if kind == "full":
            return self.norm(heads.flatten(), name).reshape(heads.shape)
        return np.stack([self.norm(head, name) for head in heads])

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return rms_norm(x, self.config.norm_eps, self.weights[name])
