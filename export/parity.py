"""Proves that the exported graph decides and computes what the torch model does.

L layers, T tokens, E experts, V vocabulary. Decisions (experts, layers, exits) must be equal; a token whose margin to
a threshold is below EPSILON is a near tie: it is counted, its decision may differ, and at most NEAR_TIES of the tokens
may be such. After a tie that fell the other way the sequences differ, so the rest of that window is not compared and is
counted too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..runtime.dial import Thresholds as SessionThresholds
from ..runtime.session import Session, Step
from ..train.model import ModelOutput, Thresholds, Transformer
from .graph import Array

EPSILON = 1e-5
NEAR_TIES = 0.01
TOLERANCE = {"fp32": 1e-4, "int8": 1e-4}
"""Largest difference of a logit. int8 is compared with itself, prompt against single tokens: they are the same to the
last bit (docs/decisions/0006), since one that differed would soon move an activation by one of its 255 steps."""


@dataclass
class Comparison:
    """Two computations of the same tokens."""

    tokens: int = 0
    near_ties: int = 0
    flipped: int = 0
    """Near ties that fell the other way."""
    not_compared: int = 0
    """Tokens behind such a flip in their window."""
    wrong_decisions: int = 0
    largest_difference: float = 0.0
    """Of a logit; in units of the standard deviation of the window's logits where that is above 1."""
    failures: list[str] = field(default_factory=list)

    def passes(self, tolerance: float) -> bool:
        few_ties = self.near_ties <= max(NEAR_TIES * self.tokens, 1)
        return not self.wrong_decisions and few_ties and self.largest_difference <= tolerance and self.tokens > 0

    def report(self, tolerance: float) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "near_ties": self.near_ties,
            "flipped_near_ties": self.flipped,
            "not_compared": self.not_compared,
            "wrong_decisions": self.wrong_decisions,
            "largest_logit_difference": self.largest_difference,
            "tolerance": tolerance,
            "passed": self.passes(tolerance),
        }


@dataclass(frozen=True)
class Pass:
    """One computation of T tokens."""

    logits: Array  # (T, V)
    selected_experts: Array  # (L, T, E) bool
    layers_run: Array  # (L, T) bool
    exit_layer: Array  # (T,)
    margins: Array  # (T,): the smallest distance of a decision to its threshold; inf where it is not known


def compare(into: Comparison, judge: Pass, found: Pass) -> None:
    """Adds a window to `into`. The margins are those of `judge`."""
    differs = (judge.selected_experts != found.selected_experts).any((0, 2))
    differs |= (judge.layers_run != found.layers_run).any(0) | (judge.exit_layer != found.exit_layer)
    tie = judge.margins < EPSILON
    end = len(differs)
    if differs.any():
        first = int(differs.argmax())
        end = first
        if tie[first]:
            into.flipped += 1
            into.not_compared += len(differs) - first - 1
        else:
            into.wrong_decisions += int(differs.sum())
            into.failures.append(f"token {first}: decisions differ at a margin of {judge.margins[first]:.2e}")
    into.tokens += len(differs)
    into.near_ties += int(tie.sum())
    if end:
        difference = float(np.abs(judge.logits[:end] - found.logits[:end]).max())
        scaled = difference / max(1.0, float(judge.logits[:end].std())) if np.isfinite(difference) else float("inf")
        into.largest_difference = max(into.largest_difference, scaled)


@torch.no_grad()
def torch_pass(model: Transformer, ids: Tensor, thresholds: Thresholds) -> Pass:
    """ids (1, T) -> Pass, with the margin of every decision."""
    out = model(ids, thresholds)
    return Pass(
        out.logits[0].float().numpy(),
        np.stack([_selected(out, i) for i in range(len(out.routing))]),
        torch.stack([layer.runs for layer in out.routing]).numpy(),
        out.exit_layer[0].numpy(),
        margins(out, thresholds, model).numpy(),
    )


def _selected(out: ModelOutput, layer: int) -> Array:
    routes = out.routing[layer].routes
    selected: Array = (routes.selected_experts if routes else out.routing[layer].runs[:, None]).numpy()
    return selected


def margins(out: ModelOutput, thresholds: Thresholds, model: Transformer) -> Tensor:
    """How far each token's closest decision is from falling the other way, (T,).

    What is not asked has no margin: a token that left, a layer that runs at any score, an exit that nobody takes.
    """
    left = out.exit_layer[0]  # (T,)
    closest = torch.full(left.shape, float("inf"))
    for i, layer in enumerate(out.routing):
        here = (left < 0) | (left >= i)
        if layer.depth_scores is not None and thresholds.depth_threshold[i] > 0:
            margin = (layer.depth_scores - thresholds.depth_threshold[i]).abs()
            closest = torch.where(here, closest.minimum(margin), closest)
        if layer.routes is not None:
            margin = _expert_margin(layer.routes.router_probs, layer.routes.selected_experts)
            if model.config.ffn.routing == "top_p" and thresholds.router_top_p[i] < 1:
                to_threshold = (layer.routes.mass_before[:, 1:] - thresholds.router_top_p[i]).abs().amin(-1)
                margin = margin.minimum(to_threshold)
            closest = torch.where(layer.runs, closest.minimum(margin), closest)
        if i in out.exit_probs and thresholds.exit_threshold[i] < 1:
            margin = (out.exit_probs[i][0] - thresholds.exit_threshold[i]).abs()
            closest = torch.where(here, closest.minimum(margin), closest)
    return closest


def _expert_margin(probs: Tensor, selected: Tensor) -> Tensor:
    """Between the least probable expert that was chosen and the most probable that was not, (N,)."""
    least = torch.where(selected, probs, torch.inf).amin(-1)
    most = torch.where(selected, -torch.inf, probs).amax(-1)
    return (least - most).abs()


def prompt_pass(session: Session, ids: Tensor, thresholds: Thresholds) -> Pass:
    """The graph on all of ids (1, T) at once."""
    _begin(session, thresholds, ids.shape[1])
    return _as_pass([session.prefill(ids[0].tolist(), num_logits=ids.shape[1])], ids.shape[1])


def token_pass(session: Session, ids: Tensor, thresholds: Thresholds) -> Pass:
    """The graph on ids (1, T) one token at a time."""
    _begin(session, thresholds, ids.shape[1])
    return _as_pass([session.step(token) for token in ids[0].tolist()], ids.shape[1])


def continue_greedily(session: Session, prompt: list[int], new_tokens: int, thresholds: Thresholds) -> list[int]:
    """prompt and the `new_tokens` most probable ids after it, by the graph."""
    _begin(session, thresholds, len(prompt) + new_tokens)
    ids, step = list(prompt), session.prefill(prompt)
    for _ in range(new_tokens):
        ids.append(int(step.logits[-1].argmax()))
        if len(ids) < len(prompt) + new_tokens:
            step = session.step(ids[-1])
    return ids


def _begin(session: Session, thresholds: Thresholds, capacity: int) -> None:
    session.reset(capacity)
    session.set_thresholds(SessionThresholds(**{n: v.numpy() for n, v in thresholds._asdict().items()}))


def _as_pass(steps: list[Step], tokens: int) -> Pass:
    return Pass(
        np.concatenate([step.logits for step in steps]),
        np.concatenate([step.routes.selected_experts for step in steps], 1),
        np.concatenate([step.routes.layers_run for step in steps], 1),
        np.concatenate([step.routes.exit_layer for step in steps]),
        np.full(tokens, np.inf),
    )
