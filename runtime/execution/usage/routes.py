"""The routes of the tokens of a pass, as the graph reports them: the experts, heads and layers that they used.

L layers, T tokens of one pass, E experts, Z zero-computation experts, H query heads.
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
    """The choices that the graph made for T tokens."""

    selected_experts: Bools
    """(L, T, E); all False where the layer was skipped, or where the token chose no expert."""
    layers_run: Bools
    """(L, T)."""
    exit_layer: Ints
    """(T,): the layer after which the token left, else -1."""
    keys: Ints
    """(L, T): keys visible to the token in each layer, including its own, without those outside its window."""
    positions: Ints
    """(T,)."""
    exits_open: Bools
    """(L,): whether exit_threshold is below 1, so that the exit check was made."""
    selected_heads: Bools | None = None
    """(L, T, H), all False where the layer was skipped; None where heads are not routed."""
    windows: Ints | None = None
    """(L, T): most tokens looked back at, 0 where the layer has no window or was skipped; None without any window."""
    zero_experts: Bools | None = None
    """(L, T, Z): the zero-computation experts that the token chose; None without any."""


def at(routes: Routes, token: int) -> Routes:
    """Return the routes of one token, with T = 1."""
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
        zero_experts=None if routes.zero_experts is None else routes.zero_experts[:, only],
    )


def between(routes: Routes, begin: int, end: int, exits_open: Bools) -> Routes:
    """Return the routes of some consecutive tokens, as views."""
    here = slice(begin, end)
    return Routes(
        selected_experts=routes.selected_experts[:, here],
        layers_run=routes.layers_run[:, here],
        exit_layer=routes.exit_layer[here],
        keys=routes.keys[:, here],
        positions=routes.positions[here],
        exits_open=exits_open,
        selected_heads=None if routes.selected_heads is None else routes.selected_heads[:, here],
        windows=None if routes.windows is None else routes.windows[:, here],
        zero_experts=None if routes.zero_experts is None else routes.zero_experts[:, here],
    )


def joined(parts: Sequence[Routes]) -> Routes:
    """Join the routes of consecutive passes that ran at the same thresholds."""
    if len(parts) == 1:
        return parts[0]

    def join(name: str, axis: int) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else np.concatenate(values, axis=axis)

    return Routes(
        selected_experts=join("selected_experts", 1),
        layers_run=join("layers_run", 1),
        exit_layer=join("exit_layer", 0),
        keys=join("keys", 1),
        positions=join("positions", 0),
        exits_open=parts[0].exits_open,
        selected_heads=join("selected_heads", 1),
        windows=join("windows", 1),
        zero_experts=join("zero_experts", 1),
    )
