"""The choices of the plain model: of experts, of heads, and by comparing a score with a threshold.

R routed things to choose from (experts or heads), D width. P is (R,), x is (D,).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from adaptive_lm.train.model import ModelConfig

Weights = Mapping[str, np.ndarray]  # by their names in torch's state_dict


class Choice(NamedTuple):
    """The choice and its margins, which are inf where no decision was taken."""

    chosen: list[int]  # in order of probability
    limit_margin: float  # least distance of a mass, or of a rank's place, to the threshold it was compared with
    rank_margin: float  # by how much the last one chosen is more probable than the first one refused


def choose_best(P: np.ndarray, count: int) -> Choice:
    """Choose the `count` most probable; of equal ones the lower number first."""
    ranked = sorted(range(len(P)), key=lambda i: -P[i])  # stable
    refused = count < len(P)
    return Choice(ranked[:count], np.inf, P[ranked[count - 1]] - P[ranked[count]] if refused else np.inf)


def choose_by_mass(P: np.ndarray, limit: float) -> Choice:
    """Choose in order of P until the mass `limit` is reached. The first always; a limit of 1 takes all."""
    if limit >= 1:  # whatever rounding makes of the mass
        return choose_best(P, len(P))
    ranked = choose_best(P, len(P)).chosen
    count, mass, margin = 1, P[ranked[0]], np.inf
    while count < len(P):
        margin = min(margin, abs(mass - limit))
        if not mass < limit:
            break
        mass = mass + P[ranked[count]]
        count += 1
    return choose_best(P, count)._replace(limit_margin=margin)


def choose_positive(z: np.ndarray, limit: float) -> Choice:
    """Choose in order of z among those above 0 until the share `limit` of their sum is reached; a limit of 1 takes all.

    There may be none. The rank margin is also the least distance of a z to 0.
    """
    ranked = [i for i in choose_best(z, len(z)).chosen if z[i] > 0]
    whole, mass, chosen, margin, rank_margin = sum(z[i] for i in ranked), 0, [], np.inf, np.abs(z).min()
    for i in ranked:
        if chosen and limit < 1:
            margin = min(margin, abs(mass / whole - limit))
        if limit < 1 and not mass / whole < limit:
            rank_margin = min(rank_margin, z[chosen[-1]] - z[i])
            break
        chosen, mass = [*chosen, i], mass + z[i]
    return Choice(chosen, margin, rank_margin)


class Candidates(NamedTuple):
    """A choice among candidates and its margins, which are inf where no decision was taken."""

    chosen: list[int]
    limit_margin: float
    rank_margin: float
    ratio_margin: float  # least distance of a score, relative to the first, to the ratio


def choose_candidates(P: np.ndarray, S: np.ndarray, most: int, limit: float, ratio: float) -> Candidates:
    """Choose in order of S among the best `most` until the next one breaks a rule. The first always.

    Rank i may follow while the ranks before it have less than `limit` of the mass P of the candidates (a limit of 1:
    always), and while its P is at least `ratio` times that of the first.
    """
    ranked = choose_best(S, most).chosen
    whole, count, mass, limit_margin, ratio_margin = sum(P[i] for i in ranked), 1, P[ranked[0]], np.inf, np.inf
    for i in ranked[1:]:
        if limit < 1:
            limit_margin = min(limit_margin, abs(mass / whole - limit))
        ratio_margin = min(ratio_margin, abs(P[i] / P[ranked[0]] - ratio) if ratio > 0 else np.inf)
        if (limit < 1 and not mass / whole < limit) or P[i] < ratio * P[ranked[0]]:
            break
        mass, count = mass + P[i], count + 1
    return Candidates(ranked[:count], limit_margin, choose_best(S, count).rank_margin, ratio_margin)


def choose_by_complexity(P: np.ndarray, level: float, complexity: float, least: int, most: int) -> Choice:
    """Choose the best `least`, and of the next, up to `most`, those whose rank has a score below the level.

    The ranks between are at equal steps q between 0 and 1, and a token of complexity c moves them all to
    sigmoid(logit(q) - c): the more complex, the lower. A level of 1 takes `most`, whatever the complexity.
    """
    count, margin = least, np.inf
    for rank in range(least, most):
        if level >= 1:
            count += 1
            continue
        q = (rank - least + 0.5) / (most - least)
        score = sigmoid(np.log(q / (1 - q)) - complexity)
        margin = min(margin, abs(score - level))
        if score < level:
            count += 1
    return choose_best(P, count)._replace(limit_margin=margin)


def predicted(weights: Weights, router: str, z: np.ndarray) -> float:
    """Return w . z + b, the output of a router's predictor for this token."""
    return weights[f"{router}.per_token.weight"] @ z + weights[f"{router}.per_token.bias"]


def per_token_limit(weights: Weights, router: str, z: np.ndarray, reach: float, level: float) -> float:
    """Return sigmoid(logit(level) + reach tanh(w . z + b)), the threshold of this token; 0 and 1 are not moved."""
    if not 0 < level < 1:
        return level
    inside = min(max(level, 1e-6), 1 - 1e-6)
    return sigmoid(np.log(inside / (1 - inside)) + reach * np.tanh(predicted(weights, router, z)))


def confidence(criterion: str, logits: np.ndarray) -> float:
    """Return the confidence of logits (V,), 0..1, by `top_prob`, `margin` or `entropy`."""
    p = np.sort(softmax(logits))[::-1]
    if criterion == "top_prob":
        return p[0]
    if criterion == "margin":
        return p[0] - p[1]
    entropy = sum(-share * np.log(share) for share in p if share > 0)
    return 1 - entropy / np.log(len(p))


def softmax(z: np.ndarray) -> np.ndarray:
    exponentials = np.exp(z - z.max())
    return exponentials / exponentials.sum()


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def rms_norm(x: np.ndarray, eps: float, weight: np.ndarray | None = None) -> np.ndarray:
    """Return x / sqrt(mean(x^2) + eps), times the weight."""
    normed = x / np.sqrt(np.mean(x * x) + x.dtype.type(eps))
    return normed if weight is None else normed * weight


def state_norm(weights: Weights, config: ModelConfig, name: str, x: np.ndarray) -> np.ndarray:
    """Normalise a hidden state (D,) by the norm of that name; where the model has none at that place, return x.

    LayerNorm is (x - mean) / sqrt(var + eps) * weight + bias, Ba et al. 2016 (arXiv 1607.06450).
    """
    before, after = name.endswith(("attention_norm", "ffn_norm")), name.endswith("post_norm")
    if (before and config.norm_place == "post") or (after and config.norm_place == "pre"):
        return x
    if config.norm == "rms":
        return rms_norm(x, config.norm_eps, weights[f"{name}.weight"])
    centred = x - x.mean()
    return rms_norm(centred, config.norm_eps, weights[f"{name}.weight"]) + weights[f"{name}.bias"]
