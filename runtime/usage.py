"""What a token used: experts, heads, layers, and what that cost.

L layers, T tokens of one pass, E experts. Costs are those of the manifest: FLOPs (a multiply-add is 2) and bytes read.

    executed = head + sum over layers run (attention + attention_per_key * keys + router + expert * used + shared)
             + depth router and exit check wherever they were asked + keys and values of skipped layers (project policy)
    dense    = the same with every layer and every expert, and no exit check
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .manifest import CostTable, Manifest

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
    """Costs of T tokens in one unit, each (T,)."""

    executed: Floats
    dense: Floats
    adaptive: Floats  # the part of `executed` that the thresholds decide about: layers, experts
    adaptive_dense: Floats


class Meter:
    """Costs of tokens by the tables of one manifest."""

    def __init__(self, manifest: Manifest) -> None:
        model = manifest.model
        self._flops = _Table(manifest.costs.flops)
        self._bytes = _Table(manifest.costs.weight_bytes)
        self._experts = np.array([layer.num_experts for layer in model.layers], dtype=np.float64)  # (L,)
        self._depth_routers = np.array([layer.depth_router for layer in model.layers])  # (L,)
        self._exits = np.array([layer.exit for layer in model.layers])  # (L,)
        self._index = np.arange(model.num_layers)[:, None]  # (L, 1)
        self._num_heads = model.num_heads

    def flops(self, routes: Routes) -> Spent:
        """FLOPs of each token of `routes`."""
        return self._spent(self._flops, routes)

    def bytes(self, routes: Routes) -> Spent:
        """Bytes that each token alone would read; tokens of one pass share the weights, not the KV cache."""
        return self._spent(self._bytes, routes)

    def _spent(self, table: "_Table", routes: Routes) -> Spent:
        run = routes.layers_run  # (L, T)
        # A token that left is asked nothing after the layer at which it left.
        alive = (routes.exit_layer < 0) | (self._index <= routes.exit_layer)  # (L, T)
        used = routes.selected_experts.sum(axis=2, dtype=np.float64)  # (L, T)
        adaptive = table.block + table.key * routes.keys + table.expert * used
        asked = self._depth_routers[:, None] & alive
        checked = (self._exits & routes.exits_open)[:, None] & alive
        executed = np.where(run, adaptive + table.router, table.skipped_kv) + table.depth_router * asked
        executed = executed + table.exit_check * checked
        keys = routes.positions + 1  # (T,): without skipping, every layer holds every token so far
        adaptive_dense = (table.block + table.expert * self._experts[:, None] + table.key * keys).sum(axis=0)
        dense = table.fixed + adaptive_dense
        return Spent(table.head + executed.sum(axis=0), dense, np.where(run, adaptive, 0.0).sum(axis=0), adaptive_dense)

    def usage(self, routes: Routes, token: int = -1) -> Usage:
        """What one token of a pass used; by default the last, from which the next token is chosen."""
        one = at(routes, token)
        flops, read = self.flops(one), self.bytes(one)
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
            executed_flops=float(flops.executed[0]),
            dense_flops=float(flops.dense[0]),
            executed_bytes=float(read.executed[0]),
            dense_bytes=float(read.dense[0]),
        )


class _Table:
    """A cost table as columns (L, 1), ready to broadcast over tokens."""

    def __init__(self, costs: CostTable) -> None:
        def column(*names: str) -> Floats:
            return np.array([[sum(getattr(layer, name) for name in names)] for layer in costs.layers], dtype=np.float64)

        self.head = costs.head
        self.block = column("attention", "shared_expert")
        self.key = column("attention_per_key")
        self.router = column("router")
        self.expert = column("expert")
        self.depth_router = column("depth_router")
        self.exit_check = column("exit_check")
        self.skipped_kv = column("skipped_kv")
        self.fixed = costs.head + float(column("router", "depth_router").sum())  # of the dense pass


def at(routes: Routes, token: int) -> Routes:
    """The routes of one token, with T = 1."""
    only = [token]
    return Routes(
        selected_experts=routes.selected_experts[:, only],
        layers_run=routes.layers_run[:, only],
        exit_layer=routes.exit_layer[only],
        keys=routes.keys[:, only],
        positions=routes.positions[only],
        exits_open=routes.exits_open,
    )
