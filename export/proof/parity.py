"""Compare what the exported graph decides and computes with what the torch model does.

L layers, T tokens, E experts, H heads, V vocabulary. Decisions (experts, heads, windows, layers, exits) must be equal.
A token whose score is closer to its threshold than EPSILON is a near tie: it is counted, its decision may differ, and
at most a share NEAR_TIES of the tokens may be near ties. After a near tie that was decided the other way the sequences
differ, so the rest of that window is not compared; it is counted too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...runtime.dial import Thresholds
from ...runtime.execution.sequence import Sequence as Tokens
from ...runtime.execution.session import Session
from ...runtime.execution.step import Step
from ...train.model import ModelOutput, ThresholdTensors, Transformer
from ...train.model.attention.heads import HeadRoutes
from ...train.model.attention.window import LEVELS
from ...train.model.block import LayerRouting
from ...train.model.routing.router import Routes
from ...train.model.routing.thresholded_router import shifted
from ..graph.builder import Array
from ..graph.lazy_array import LazyArray

EPSILON = 1e-5
"""Margin below which a decision is a near tie."""
NEAR_TIES = 0.01
"""Largest share of near ties."""
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-4, "fp16": 1e-4, "int8": 1e-4, "int4": 1e-4}
"""Largest difference of a logit. int8 is compared with itself, a prompt with its single tokens: they are equal to the
last bit (docs/decisions/0006), since one that differed would soon move an activation by one of its 255 steps."""
HIDDEN_FACTOR = 10
"""Largest difference of a hidden state, in tolerances of a logit: a few of its numbers are many times the others, and
round more coarsely. Those of SmolLM2 (30 layers) differ by 0.8 tolerances."""
HALF_EPSILON = 5e-3
"""The margin of a near tie where products are in fp16, which has 11 bits."""
HALF_TOLERANCE = 1e-2
"""Largest difference of a logit there, between a prompt and its tokens: the last bit of a product may round apart."""

STATES_EPSILON = 3e-5
"""The margin of a near tie in a model with recurrent mixers."""
STATES_TOLERANCE = 1e-2
"""Largest difference of a logit there. These mixers divide each head by its own size; where that is almost 0, rounding
errors grow, and with them the logits of that token. So they do in torch: computed in float32, a few tokens in ten
thousand are 1e-3 of the spread from the result in float64 (docs/decisions/0048)."""
STATES_USUAL = 2e-4
"""Largest difference of a logit of the other tokens of such a model; a token with a larger one is an outlier."""
OUTLIERS = 0.01
"""Largest share of outliers."""


@dataclass
class Comparison:
    """The comparison of two computations of the same tokens."""

    epsilon: float = EPSILON
    """Margin below which a decision is a near tie."""
    capped: bool = True
    """Whether too many near ties make it fail. False for tokens that another comparison also judges: a few hundred of
    them are too few to estimate a share of 1 %."""
    tokens: int = 0
    """Tokens in all windows."""
    near_ties: int = 0
    """Tokens whose closest decision is a near tie."""
    flipped: int = 0
    """Near ties that were decided the other way."""
    not_compared: int = 0
    """Tokens after such a flip in their window."""
    wrong_decisions: int = 0
    """Tokens with a decision that differs and is no near tie."""
    largest_difference: float = 0.0
    """Largest difference of a logit, in units of the standard deviation of the window's logits where that is above
    1."""
    largest_hidden_difference: float | None = None
    """The same of a number of the hidden states; None where the graph does not give them."""
    outliers: int | None = None
    """Tokens with a logit that differs by more than STATES_USUAL; None in a model without recurrent mixers."""
    failures: list[str] = field(default_factory=list)
    """The first wrong decision of each window, for the user."""

    def passes(self, tolerance: float) -> bool:
        """Return whether decisions and logits agree within the tolerance."""
        few_ties = not self.capped or self.near_ties <= max(NEAR_TIES * self.tokens, 1)
        hidden = self.largest_hidden_difference or 0.0
        close = self.largest_difference <= tolerance and hidden <= HIDDEN_FACTOR * tolerance
        few_outliers = (self.outliers or 0) <= OUTLIERS * self.tokens
        return not self.wrong_decisions and few_ties and close and few_outliers and self.tokens > 0

    def report(self, tolerance: float) -> dict[str, Any]:
        """Return the figures for the manifest."""
        hidden = self.largest_hidden_difference
        of_hidden = {"largest_hidden_difference": hidden, "hidden_tolerance": HIDDEN_FACTOR * tolerance}
        return {
            "tokens": self.tokens,
            "near_ties": self.near_ties,
            "flipped_near_ties": self.flipped,
            "not_compared": self.not_compared,
            "wrong_decisions": self.wrong_decisions,
            "largest_logit_difference": self.largest_difference,
            "tolerance": tolerance,
            **({} if hidden is None else of_hidden),
            **({} if self.outliers is None else {"outliers": self.outliers}),
            "passed": self.passes(tolerance),
        }


@dataclass(frozen=True)
class Pass:
    """The outputs of one computation of T tokens."""

    logits: Array | LazyArray  # (T, V)
    selected_experts: Array  # (L, T, E) bool
    layers_run: Array  # (L, T) bool
    exit_layer: Array  # (T,)
    selected_heads: Array  # (L, T, H) bool; (L, T, 0) where heads are not routed
    windows: Array  # (L, T) int64; zeros where no layer has one
    zero_experts: Array  # (L, T, Z) bool; (L, T, 0) without zero-computation experts
    hidden: Array | LazyArray  # (T, D): states after the last norm; (T, 0) where they are not given
    margins: Array  # (T,): the smallest distance of a decision to its threshold; inf where it is not known

    def tokens(self, begin: int, end: int) -> Pass:
        """Return the outputs of tokens begin to end."""
        by_layer = ("selected_experts", "layers_run", "selected_heads", "windows", "zero_experts")
        parts = {name: getattr(self, name)[:, begin:end] for name in by_layer}
        return Pass(
            logits=self.logits[begin:end],
            hidden=self.hidden[begin:end],
            exit_layer=self.exit_layer[begin:end],
            margins=self.margins[begin:end],
            **parts,
        )

    def differs_from(self, other: Pass) -> Array:
        """Return for each token whether any decision about it differs, (T,) bool."""
        differs: Array = self.exit_layer != other.exit_layer
        for name in ("selected_experts", "zero_experts", "selected_heads"):
            differs = differs | (getattr(self, name) != getattr(other, name)).any((0, 2))
        for name in ("layers_run", "windows"):
            differs = differs | (getattr(self, name) != getattr(other, name)).any(0)
        return differs


def compare(into: Comparison, expected: Pass, actual: Pass) -> None:
    """Add a window to `into`. The margins are those of `expected`."""
    differs = expected.differs_from(actual)
    tie = expected.margins < into.epsilon
    end = len(differs)
    if differs.any():
        first = int(differs.argmax())
        end = first
        if tie[first]:
            into.flipped += 1
            into.not_compared += len(differs) - first - 1
        else:
            into.wrong_decisions += int(differs.sum())
            into.failures.append(f"token {first}: decisions differ at a margin of {expected.margins[first]:.2e}")
    into.tokens += len(differs)
    into.near_ties += int(tie.sum())
    if end:
        difference = largest_difference(expected.logits[:end], actual.logits[:end])
        into.largest_difference = max(into.largest_difference, difference)
        if into.outliers is not None:
            into.outliers += outliers(expected.logits[:end], actual.logits[:end])
        if actual.hidden.shape[1]:
            difference = largest_difference(expected.hidden[:end], actual.hidden[:end])
            into.largest_hidden_difference = max(into.largest_hidden_difference or 0.0, difference)


def largest_difference(expected: Array, actual: Array) -> float:
    """Return the largest difference in units of the standard deviation of `expected` where that is above 1."""
    differences = expected - actual
    difference = float(np.abs(differences, out=differences).max())
    return difference / max(1.0, float(expected.std())) if np.isfinite(difference) else float("inf")


def outliers(expected: Array, actual: Array) -> int:
    """Count the tokens with a logit that differs by more than STATES_USUAL."""
    differences = np.abs(expected - actual).max(1)
    return int((differences > STATES_USUAL * max(1.0, float(expected.std()))).sum())


@torch.no_grad()
def torch_pass(model: Transformer, ids: Tensor, thresholds: ThresholdTensors) -> Pass:
    """Run the torch model on ids (1, T), with the margin of every decision; on (B, T), the tokens side by side."""
    out = model(ids, thresholds)
    tokens = ids.numel()
    experts = [layer.routes.selected_experts if layer.routes else _one_of(model, layer.runs) for layer in out.routing]
    routed = model.config.heads.routing != "all"  # a layer without attention chooses no head
    no_heads = torch.zeros(tokens, model.config.num_heads if routed else 0, dtype=torch.bool)
    no_window = torch.zeros(tokens, dtype=torch.int64)
    heads = [layer.heads.selected_heads if layer.heads else no_heads for layer in out.routing]
    windows = [layer.windows.sizes if layer.windows else no_window for layer in out.routing]
    no_zero = torch.zeros(tokens, model.config.ffn.zero_experts.total, dtype=torch.bool)
    zero = [layer.routes.zero.selected if layer.routes and layer.routes.zero else no_zero for layer in out.routing]
    return Pass(
        out.logits.flatten(0, 1).float().numpy(),
        torch.stack(experts).numpy(),
        torch.stack([layer.runs for layer in out.routing]).numpy(),
        out.exit_layer.flatten().numpy(),
        torch.stack(heads).numpy(),
        torch.stack(windows).numpy(),
        torch.stack(zero).numpy(),
        out.hidden.flatten(0, 1).float().numpy(),
        margins(out, thresholds, model).numpy(),
    )


def _one_of(model: Transformer, runs: Tensor) -> Tensor:
    """Return what a dense FFN reports of the tokens that run it, (T, E) bool: the first of the experts of the model."""
    selected = runs.new_zeros(len(runs), model.config.num_experts)
    selected[:, 0] = runs
    return selected


def margins(out: ModelOutput, thresholds: ThresholdTensors, model: Transformer) -> Tensor:
    """Return for each token the distance of its closest decision to the threshold, (T,).

    What is not decided has no margin: a token that left, a layer that runs at any score, an exit that no token takes.
    """
    left = out.exit_layer.flatten()  # (T,), or of B windows (B*T,)
    closest = torch.full(left.shape, float("inf"))
    for i, layer in enumerate(out.routing):
        here = (left < 0) | (left >= i)
        if layer.depth is not None and thresholds.depth_threshold[i] > 0:
            margin = (layer.depth.scores - shifted(thresholds.depth_threshold[i], layer.depth.shift)).abs()
            closest = torch.where(here, closest.minimum(margin), closest)
        for margin in _choices(layer, i, thresholds, model):
            closest = torch.where(layer.runs, closest.minimum(margin), closest)
        if i in out.exit_confidence and thresholds.exit_threshold[i] < 1:
            margin = (out.exit_confidence[i].flatten() - thresholds.exit_threshold[i]).abs()
            closest = torch.where(here, closest.minimum(margin), closest)
    return closest


def _choices(layer: LayerRouting, i: int, thresholds: ThresholdTensors, model: Transformer) -> Iterator[Tensor]:
    """Yield the margins, (T,) each, of what a token decides inside a layer that it runs."""
    config = model.config
    if layer.routes is not None:
        routes, candidates = layer.routes, layer.routes.ranked.shape[1]
        yield _rank_margin(routes.ranking, routes.selected)
        relu = config.ffn.routing == "relu"
        if relu:
            yield routes.router_logits.abs().amin(-1)
        if (relu or config.ffn.routing == "top_p") and candidates > 1 and thresholds.router_top_p[i] < 1:
            limit = shifted(thresholds.router_top_p[i], routes.shift)
            yield _asked(routes.mass_before[:, 1:] - limit, routes)
        if candidates > 1 and thresholds.router_ratio is not None and thresholds.router_ratio[i] > 0:
            yield _asked(routes.ranked[:, 1:] / routes.ranked[:, :1] - thresholds.router_ratio[i], routes)
    if layer.heads is not None:
        yield _rank_margin(layer.heads.router_probs, layer.heads.selected_heads[:, config.heads.shared_heads :])
        if config.heads.routing != "top_k" and thresholds.head_top_p[i] < 1:
            yield _head_limit_margin(layer.heads, thresholds.head_top_p[i], model)
    if layer.windows is not None and layer.windows.scores is not None:
        score = LEVELS * layer.windows.scores
        yield (score - score.round().clamp(1, LEVELS - 1)).abs() / LEVELS


def _asked(distances: Tensor, routes: Routes) -> Tensor:
    """Return the least of the distances (T, ranks) of the ranks after the first, up to the first that is left out."""
    ranks = torch.arange(distances.shape[1], device=distances.device)
    asked = ranks < routes.selected.sum(-1, keepdim=True)
    return torch.where(asked, distances.abs(), torch.inf).amin(-1)


def _head_limit_margin(heads: HeadRoutes, level: Tensor, model: Transformer) -> Tensor:
    """Return the least distance to the threshold of the ranks that it decides about, (T,); inf where there are none."""
    shared, least, most = model.config.heads.shared_heads, model.config.least_heads, model.config.most_heads
    distance = (heads.mass_before - shifted(level, heads.shift)).abs()[:, least - shared : most - shared]
    return torch.cat([distance, distance.new_full((len(distance), 1), torch.inf)], -1).amin(-1)


def _rank_margin(probs: Tensor, selected: Tensor) -> Tensor:
    """Return the distance between the least probable choice and the most probable one not chosen, (T,)."""
    least = torch.where(selected, probs, torch.inf).amin(-1)
    most = torch.where(selected, -torch.inf, probs).amax(-1)
    return (least - most).abs()


def prompt_pass(session: Session, ids: Tensor, thresholds: ThresholdTensors) -> Pass:
    """Run the graph on all of ids (1, T) at once."""
    sequence = _begin(session, thresholds, ids.shape[1])
    return _as_pass([sequence.prefill(ids[0].tolist(), num_logits=ids.shape[1])], ids.shape[1])


def token_pass(session: Session, ids: Tensor, thresholds: ThresholdTensors) -> Pass:
    """Run the graph on ids (1, T), one token at a time."""
    sequence = _begin(session, thresholds, ids.shape[1])
    return _as_pass([sequence.step(token) for token in ids[0].tolist()], ids.shape[1])


def continue_greedily(session: Session, prompt: list[int], new_tokens: int, thresholds: ThresholdTensors) -> list[int]:
    """Continue a prompt with the graph by the most probable ids; return prompt and continuation."""
    sequence = _begin(session, thresholds, len(prompt) + new_tokens)
    ids, step = list(prompt), sequence.prefill(prompt)
    for _ in range(new_tokens):
        ids.append(int(step.logits[-1].argmax()))
        if len(ids) < len(prompt) + new_tokens:
            step = sequence.step(ids[-1])
    return ids


def _begin(session: Session, thresholds: ThresholdTensors, capacity: int) -> Tokens:
    return session.sequence(Thresholds(**{n: v.numpy() for n, v in thresholds.given().items()}), capacity)


def _as_pass(steps: list[Step], tokens: int) -> Pass:
    routes = [step.routes for step in steps]
    layers = len(routes[0].layers_run)
    heads = [one.selected_heads for one in routes if one.selected_heads is not None]
    windows = [one.windows for one in routes if one.windows is not None]
    zero = [one.zero_experts for one in routes if one.zero_experts is not None]
    hidden = [step.hidden for step in steps if step.hidden is not None]
    return Pass(
        np.concatenate([step.logits for step in steps]),
        np.concatenate([one.selected_experts for one in routes], 1),
        np.concatenate([one.layers_run for one in routes], 1),
        np.concatenate([one.exit_layer for one in routes]),
        np.concatenate(heads, 1) if heads else np.zeros((layers, tokens, 0), np.bool_),
        np.concatenate(windows, 1) if windows else np.zeros((layers, tokens), np.int64),
        np.concatenate(zero, 1) if zero else np.zeros((layers, tokens, 0), np.bool_),
        np.concatenate(hidden) if hidden else np.zeros((tokens, 0), np.float32),
        np.full(tokens, np.inf),
    )
