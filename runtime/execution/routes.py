"""What a token used: experts, heads, layers, and what that cost.

L layers, T tokens of one pass, E experts, H query heads. Costs are those of the manifest: FLOPs (a multiply-add is 2)
and bytes read.

    executed = lm_head + sum over layers run (attention + attention_per_key * keys + router + expert * used + shared
                                           + (head of the layer + head_per_key * keys) * heads used)
             + depth router and exit check wherever they were asked + keys and values of skipped layers (project policy)
    dense    = the same with every layer, every expert and every head, no window and no exit check
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Routes:
    """What the graph reports of the T tokens of one pass."""

    selected_experts: Bools  # (L, T, E); all False where the layer was skipped
    layers_run: Bools  # (L, T)
    exit_layer: Ints  # (T,): the layer after which the token left, else -1
    keys: Ints  # (L, T): keys visible to the token in each layer, its own among them and none outside its window
    positions: Ints  # (T,)
    exits_open: Bools  # (L,): exit_threshold below 1, so that the exit check was made
    selected_heads: Bools | None = None  # (L, T, H), all False where the layer was skipped; None: heads are not routed
    windows: Ints | None = None  # (L, T), 0 where the layer has none or was skipped; None: no layer has one


def at(routes: Routes, token: int) -> Routes:
    """The routes of one token, with T = 1."""
    if routes.layers_run.shape[1] == 1:
        return routes
    only = [token]
    return Routes(
        selected_experts=routes.selected_experts[:, only],
        layers_run=routes.layers_run[:, only],
        exit_layer=routes.exit_layer[only],
        keys=routes.keys[:, only],
        positions=routes.positions[only],
        exits_open=routes.exits_open,
        selected_heads=None if routes.selected_heads is None else routes.selected_heads[:, only],
        windows=None if routes.windows is None else routes.windows[:, only],
    )


def joined(parts: Sequence[Routes]) -> Routes:
    """The routes of passes that followed each other at the same thresholds, as of one."""

    def all_of(name: str, axis: int) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else np.concatenate(values, axis=axis)

    return Routes(
        selected_experts=all_of("selected_experts", 1),
        layers_run=all_of("layers_run", 1),
        exit_layer=all_of("exit_layer", 0),
        keys=all_of("keys", 1),
        positions=all_of("positions", 0),
        exits_open=parts[0].exits_open,
        selected_heads=all_of("selected_heads", 1),
        windows=all_of("windows", 1),
    )
