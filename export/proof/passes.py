"""The outputs of one computation of a text, by the torch model or by an exported graph.

L layers, T tokens, E experts, H heads, Z zero-computation experts, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...runtime.dial import Thresholds
from ...runtime.execution.sequence import Sequence as Tokens
from ...runtime.execution.session import Session
from ...runtime.execution.step import Step
from ...train.model import ThresholdTensors, Transformer
from ..graph.builder import Array
from ..graph.lazy_array import LazyArray
from .margins import margins


@dataclass(frozen=True)
class Pass:
    """The outputs of one computation of T tokens."""

    logits: Array | LazyArray
    """(T, V)."""
    selected_experts: Array
    """(L, T, E) bool."""
    layers_run: Array
    """(L, T) bool."""
    exit_layer: Array
    """(T,)."""
    selected_heads: Array
    """(L, T, H) bool; (L, T, 0) where heads are not routed."""
    windows: Array
    """(L, T) int64; zeros where no layer has one."""
    zero_experts: Array
    """(L, T, Z) bool; (L, T, 0) without zero-computation experts."""
    hidden: Array | LazyArray
    """(T, D): states after the last norm; (T, 0) where they are not given."""
    margins: Array
    """(T,): the smallest distance of a decision to its threshold; inf where it is not known."""

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
