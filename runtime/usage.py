"""What a token used: experts, heads, layers, and what that cost.

L layers, T tokens of one pass, E experts. Costs are those of the manifest: FLOPs (a multiply-add is 2) and bytes read.

    executed = head + sum over layers run (attention + attention_per_key * keys + router + expert * used + shared)
             + depth router and exit check wherever they were asked + keys and values of skipped layers (project policy)
    dense    = the same with every layer and every expert, and no exit check
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .manifest import Manifest

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Routes:
    """What the graph reports of the T tokens of one pass."""

    selected_experts: Bools  # (L, T, E); all False where the layer was skipped
    layers_run: Bools  # (L, T)
    exit_layer: Ints  # (T,): the layer after which the token left, else -1
    keys: Ints  # (L, T): keys visible to the token in each layer, its own among them
    positions: Ints  # (T,)
    exits_open: Bools  # (L,): exit_threshold below 1, so that the exit check was made


@dataclass(frozen=True)
class Usage:
    """What one token used; `Step.usage` of its pass."""

    experts: tuple[tuple[int, ...], ...]  # (L) ids; none where the layer was skipped
    heads: tuple[int, ...]  # (L) query heads used: all of them, or 0 where the layer was skipped
    layers_run: tuple[int, ...]  # ids
    exit_layer: int | None  # None if it did not leave early
    executed_flops: float
    dense_flops: float
    executed_bytes: float  # of weights and KV cache
    dense_bytes: float

    @property
    def flops_share(self) -> float:
        return self.executed_flops / self.dense_flops

    @property
    def experts_per_layer(self) -> float:
        """Mean over the layers run."""
        return sum(map(len, self.experts)) / max(len(self.layers_run), 1)


@dataclass(frozen=True)
class Spent:
    """Costs of T tokens, each (2, T): FLOPs in the first row, bytes of weights and KV cache in the second.

    The bytes are what a token alone would read; tokens of one pass share the weights, though not the KV cache.
    """

    executed: Floats
    dense: Floats
    adaptive: Floats  # of `executed`, the attention and experts of the layers run: what the thresholds decide about
    adaptive_dense: Floats


class Meter:
    """Costs of tokens by the tables of one manifest."""

    def __init__(self, manifest: Manifest) -> None:
        model = manifest.model
        tables = (manifest.costs.flops, manifest.costs.weight_bytes)
        L = model.num_layers
        num_experts = np.array([layer.num_experts for layer in model.layers], dtype=np.float64)  # (L,)

        def column(name: str) -> Floats:
            return np.array([[getattr(layer, name) for layer in table.layers] for table in tables], dtype=np.float64)

        zero = np.zeros((2, L))
        block, key, expert = (
            column("attention") + column("shared_expert"),
            column("attention_per_key"),
            column("expert"),
        )
        depth_router = column("depth_router") * [layer.depth_router for layer in model.layers]
        exit_check = column("exit_check") * [layer.exit for layer in model.layers]
        # One row per counter of `_counters`, so that tokens cost one small product: (4, 6 * L) @ (6 * L, T).
        executed = (block + column("router"), key, expert, column("skipped_kv"), depth_router, exit_check)
        adaptive = (block, key, expert, zero, zero, zero)
        self._costs = np.concatenate([np.concatenate(rows, axis=1) for rows in (executed, adaptive)])  # (4, 6 * L)
        self._head = np.array([[table.head] for table in tables])  # (2, 1)
        self._full = (block + expert * num_experts).sum(axis=1, keepdims=True)  # (2, 1): every layer and every expert
        self._key = key.sum(axis=1, keepdims=True)  # (2, 1)
        self._routers = (column("router") + depth_router).sum(axis=1, keepdims=True)  # (2, 1)
        self._index = np.arange(L)[:, None]  # (L, 1)
        self._num_heads = model.num_heads

    def spent(self, routes: Routes) -> Spent:
        """What each token of `routes` cost, and what it would have cost a dense pass."""
        both = self._costs @ self._counters(routes)  # (4, T)
        adaptive_dense = self._full + self._key * (
            routes.positions + 1
        )  # (2, T); no skipping: every layer holds every token
        return Spent(self._head + both[:2], self._head + self._routers + adaptive_dense, both[2:], adaptive_dense)

    def _counters(self, routes: Routes) -> Floats:
        """How often each part ran, (6 * L, T): block, keys seen, experts, skipped, depth router, exit check."""
        run = routes.layers_run  # (L, T)
        L, T = run.shape
        counters = np.empty((6, L, T))
        counters[0] = run
        np.multiply(run, routes.keys, out=counters[1])
        routes.selected_experts.sum(axis=2, out=counters[2])
        np.logical_not(run, out=counters[3], casting="unsafe")
        # A token that left is asked nothing after the layer at which it left.
        counters[4] = (routes.exit_layer < 0) | (self._index <= routes.exit_layer)
        np.multiply(counters[4], routes.exits_open[:, None], out=counters[5])
        return counters.reshape(6 * L, T)

    def usage(self, routes: Routes, token: int = -1) -> Usage:
        """What one token of a pass used; by default the last, from which the next token is chosen."""
        one = at(routes, token)
        spent = self.spent(one)
        run = one.layers_run[:, 0].tolist()
        exit_layer = int(one.exit_layer[0])
        experts: list[list[int]] = [[] for _ in run]
        for layer, expert in zip(*(axis.tolist() for axis in one.selected_experts[:, 0].nonzero()), strict=True):
            experts[layer].append(expert)
        return Usage(
            experts=tuple(map(tuple, experts)),
            heads=tuple(self._num_heads if ran else 0 for ran in run),
            layers_run=tuple(layer for layer, ran in enumerate(run) if ran),
            exit_layer=None if exit_layer < 0 else exit_layer,
            executed_flops=float(spent.executed[0, 0]),
            dense_flops=float(spent.dense[0, 0]),
            executed_bytes=float(spent.executed[1, 0]),
            dense_bytes=float(spent.dense[1, 0]),
        )


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
    )
