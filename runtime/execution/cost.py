"""What a token used, and what that cost."""

from dataclasses import dataclass

import numpy as np

from ..format.manifest import Manifest
from .routes import Bools, Floats, Routes, at


@dataclass(frozen=True)
class Usage:
    """What one token used; `Step.usage` of its pass."""

    experts: tuple[tuple[int, ...], ...]  # (L) ids; none where the layer was skipped
    heads: tuple[tuple[int, ...], ...]  # (L) ids; all where heads are not routed, none where the layer was skipped
    windows: tuple[int, ...]  # (L) most tokens looked back at; 0 where the layer has no window or was skipped
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

    @property
    def heads_per_layer(self) -> float:
        """Mean over the layers run."""
        return sum(map(len, self.heads)) / max(len(self.layers_run), 1)


@dataclass(frozen=True)
class Spent:
    """Costs of T tokens, each (2, T): FLOPs in the first row, bytes of weights and KV cache in the second.

    The bytes are what a token alone would read; tokens of one pass share the weights, though not the KV cache.
    """

    executed: Floats
    dense: Floats
    adaptive: Floats  # of `executed`, attention, heads and experts of the layers run: what the thresholds decide
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
        self._num_heads = H = model.num_heads
        block, key, expert = (
            column("attention") + column("shared_expert"),
            column("attention_per_key"),
            column("expert"),
        )
        depth_router = column("depth_router") * [layer.depth_router for layer in model.layers]
        exit_check = column("exit_check") * [layer.exit for layer in model.layers]
        head, head_key = column("head"), column("head_per_key")
        # One row per counter of `_counters`, so that tokens cost one small product: (4, 8 * L) @ (8 * L, T).
        decided = (key, expert, head, head_key)
        executed = (block + column("router"), *decided, column("skipped_kv"), depth_router, exit_check)
        adaptive = (block, *decided, zero, zero, zero)
        self._costs = np.concatenate([np.concatenate(rows, axis=1) for rows in (executed, adaptive)])  # (4, 8 * L)
        self._lm_head = np.array([[table.lm_head] for table in tables])  # (2, 1)
        self._full = (block + expert * num_experts + head * H).sum(axis=1, keepdims=True)  # (2, 1): every layer
        self._key = (key + head_key * H).sum(axis=1, keepdims=True)  # (2, 1)
        self._routers = (column("router") + depth_router).sum(axis=1, keepdims=True)  # (2, 1)
        self._index = np.arange(L)[:, None]  # (L, 1)

    def spent(self, routes: Routes) -> Spent:
        """What each token of `routes` cost, and what it would have cost a dense pass."""
        both = self._costs @ self._counters(routes)  # (4, T)
        adaptive_dense = self._full + self._key * (
            routes.positions + 1
        )  # (2, T); no skipping: every layer holds every token
        return Spent(self._lm_head + both[:2], self._lm_head + self._routers + adaptive_dense, both[2:], adaptive_dense)

    def _counters(self, routes: Routes) -> Floats:
        """How often each part ran, (8 * L, T).

        Block, keys seen, experts, heads, heads times keys seen, skipped, depth router, exit check.
        """
        run = routes.layers_run  # (L, T)
        L, T = run.shape
        counters = np.empty((8, L, T))
        counters[0] = run
        np.multiply(run, routes.keys, out=counters[1])
        routes.selected_experts.sum(axis=2, out=counters[2])
        if routes.selected_heads is None:
            np.multiply(run, self._num_heads, out=counters[3])
        else:
            routes.selected_heads.sum(axis=2, out=counters[3])
        np.multiply(counters[3], routes.keys, out=counters[4])
        np.logical_not(run, out=counters[5], casting="unsafe")
        # A token that left is asked nothing after the layer at which it left.
        counters[6] = (routes.exit_layer < 0) | (self._index <= routes.exit_layer)
        np.multiply(counters[6], routes.exits_open[:, None], out=counters[7])
        return counters.reshape(8 * L, T)

    def usage(self, routes: Routes, token: int = -1) -> Usage:
        """What one token of a pass used; by default the last, from which the next token is chosen."""
        one = at(routes, token)
        spent = self.spent(one)
        run = one.layers_run[:, 0].tolist()
        exit_layer = int(one.exit_layer[0])
        every = tuple(range(self._num_heads))
        return Usage(
            experts=_ids(one.selected_experts),
            heads=tuple(every if ran else () for ran in run)
            if one.selected_heads is None
            else _ids(one.selected_heads),
            windows=tuple(0 for _ in run) if one.windows is None else tuple(one.windows[:, 0].tolist()),
            layers_run=tuple(layer for layer, ran in enumerate(run) if ran),
            exit_layer=None if exit_layer < 0 else exit_layer,
            executed_flops=float(spent.executed[0, 0]),
            dense_flops=float(spent.dense[0, 0]),
            executed_bytes=float(spent.executed[1, 0]),
            dense_bytes=float(spent.dense[1, 0]),
        )


def _ids(selected: Bools) -> tuple[tuple[int, ...], ...]:
    """(L, 1, n) bool -> for each layer the indices that are True."""
    ids: list[list[int]] = [[] for _ in selected]
    for layer, one in zip(*(axis.tolist() for axis in selected[:, 0].nonzero()), strict=True):
        ids[layer].append(one)
    return tuple(map(tuple, ids))
