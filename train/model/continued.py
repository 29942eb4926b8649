"""A model that goes on from the weights of another one: the settings that may change, and the weights that it takes."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ...contract.errors import UserError
from .config.model import ModelConfig
from .transformer import Transformer

FREE = re.compile(
    r"context_length"
    r"|depth\..+"
    r"|recurrence\.chunk"
    r"|(heads|ffn)\.(controller|scope|pi_gains|ema|per_token|per_token_reach)"
    r"|heads\.(heads_per_token|head_top_p)(\..+)?"
    r"|ffn\.(experts_per_token|most_experts|random_experts|router_top_p(\..+)?)"
)
"""Settings that the weights do not fix: how far a text reaches, how it is cut in training, and how much runs."""
OF_CONTROL = re.compile(
    r"(^|\.)(depth_router|controller|pi|per_token)\.|^(exit_routers|pi)\.|\.level_logit$|\.window_controller\."
)
"""Weights and buffers that decide how much runs: a changed setting adds them or leaves them out."""


def contradictions(own: ModelConfig, wanted: ModelConfig) -> dict[str, tuple[object, object]]:
    """Return the settings of `wanted` that the weights of `own` cannot have: key -> (own, wanted)."""
    before, after = _flat(own.model_dump(mode="json")), _flat(wanted.model_dump(mode="json"))
    changed = {
        key: (before.get(key), after.get(key)) for key in {**before, **after} if before.get(key) != after.get(key)
    }
    wrong = {key: values for key, values in changed.items() if not FREE.fullmatch(key)}
    if "context_length" in changed and own.has_learned_positions:
        wrong["context_length"] = changed["context_length"]
    if wanted.ffn.routing != "dense" and wanted.ffn.candidates > own.ffn.candidates:
        wrong["ffn.most_experts"] = (own.ffn.most_experts, wanted.ffn.most_experts)
    return dict(sorted(wrong.items()))


class Taken(NamedTuple):
    """How the weights of another model fitted."""

    new: tuple[str, ...]
    """Weights that it does not have, which begin as in a new model."""
    left_out: tuple[str, ...]
    """Weights of it that this model has no use for."""


@torch.no_grad()
def take_weights(model: Transformer, state: Mapping[str, Tensor]) -> Taken:
    """Copy weights and buffers into `model`, one at a time.

    Raises:
        UserError: Something other than a router or a controller is missing, left over, or of another shape.
    """
    own = model.state_dict()
    new, left_out = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [name for name in (*new, *left_out) if not OF_CONTROL.search(name)]
    if wrong:
        raise UserError(f"the weights are of another model: {wrong[0]} has no counterpart; take the model of the run")
    for name, value in own.items():
        if name in state:
            taken = state[name]
            if taken.shape != value.shape:
                raise UserError(
                    f"{name} has the shape {list(taken.shape)}, the model expects {list(value.shape)}: the weights are "
                    "of another model; take the model of the run"
                )
            value.copy_(taken)
    names = {name for name, _ in model.named_parameters()}
    return Taken(tuple(name for name in new if name in names), tuple(n for n in left_out if not is_buffer(n)))


def is_buffer(name: str) -> bool:
    """Return whether a name of a state is that of a buffer of a controller."""
    return name.rpartition(".")[2] in ("table", "num_updates", "level", "error", "window")


def _flat(nested: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
