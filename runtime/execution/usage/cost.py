"""The cost of a token: FLOPs (a multiply-add is 2) and bytes read, by the tables of the manifest.

    executed = lm_head + sum over the layers run of (attention + attention_per_key * keys + state
                                                     + router + shared_expert + expert * experts used
                                                     + (head + head_per_key * keys) * heads used)
             + depth router and exit check, wherever they ran
             + keys and values of skipped layers (policy `project`)
    dense    = the same with every layer and head and the most experts of a token, without windows and exit checks

L layers, T tokens of one pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ...format.manifest import Costs, Manifest
from .routes import Bools, Floats, Routes, at, joined
from .total import Total


@dataclass(frozen=True)
class Usage:
    """The compute that one token used, and its cost."""

    experts: tuple[tuple[int, ...], ...]
    """For each of the L layers the ids of the experts; empty where the layer was skipped."""
    heads: tuple[tuple[int, ...], ...]
    """For each layer the ids of the query heads; all where heads are not routed, empty where the layer was skipped
    or has no attention."""
    windows: tuple[int, ...]
    """For each layer the most tokens looked back at; 0 where the layer has no window or was skipped."""
    layers_run: tuple[int, ...]
    """Ids of the layers that ran."""
    exit_layer: int | None
    """The layer after which the token left early; None if it did not."""
    executed_flops: float
    """FLOPs that ran; a multiply-add is 2."""
    dense_flops: float
    """FLOPs of the same token if every layer and head and the most experts had run."""
    executed_bytes: float
    """Bytes of weights and KV cache that were read, and of states that were read and written."""
    dense_bytes: float
    """Bytes that a dense pass would have read."""

    @property
    def flops_share(self) -> float:
        """Executed over dense FLOPs."""
        return self.executed_flops / self.dense_flops

    @property
    def experts_per_layer(self) -> float:
        """Mean number of experts over the layers run."""
        return sum(map(len, self.experts)) / max(len(self.layers_run), 1)

    @property
    def heads_per_layer(self) -> float:
        """Mean number of heads over the layers run."""
        return sum(map(len, self.heads)) / max(len(self.layers_run), 1)


@dataclass(frozen=True)
class Spent:
    """Costs of T tokens, each (2, T): FLOPs in the first row, bytes of weights, KV cache and states in the second.

    The bytes are what a token alone would read; tokens of one pass share the weights, but not the KV cache.
    """

    executed: Floats
    dense: Floats
    adaptive: Floats
    """The part of `executed` that the thresholds decide: attention, heads and experts of the layers run."""
    adaptive_dense: Floats
    """The same part of `dense`."""


class Meter:
    """Computes the costs of tokens by two tables: those of the manifest, or those of one of its targets."""

    def __init__(self, manifest: Manifest, costs: Costs | None = None) -> None:
        model, costs = manifest.model, costs or manifest.costs
        tables = (costs.flops, costs.weight_bytes)
        L = model.num_layers
        most_experts = np.array([layer.candidates for layer in model.layers], dtype=np.float64)  # (L,)

        def column(name: str) -> Floats:
            return np.array([[getattr(layer, name) for layer in table.layers] for table in tables], dtype=np.float64)

        zero = np.zeros((2, L))
        self._num_heads = H = model.num_heads
        block, key, expert = (
            column("attention") + column("state") + column("shared_expert"),
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
        self._full = (block + expert * most_experts + head * H).sum(axis=1, keepdims=True)  # (2, 1): every layer
        self._key = (key + head_key * H).sum(axis=1, keepdims=True)  # (2, 1)
        self._routers = (column("router") + depth_router).sum(axis=1, keepdims=True)  # (2, 1)
        self._index = np.arange(L)[:, None]  # (L, 1)
        self._heads = [tuple(range(H)) if layer.attends else () for layer in model.layers]
        self._heads_of = np.array([len(heads) for heads in self._heads])  # (L,)

    def spent(self, routes: Routes) -> Spent:
        """Return the cost of each token of `routes`, and that of the same token in a dense pass."""
        both = self._costs @ self._counters(routes)  # (4, T)
        keys = routes.positions + 1  # a dense pass skips nothing, so every layer holds every token
        adaptive_dense = self._full + self._key * keys  # (2, T)
        return Spent(self._lm_head + both[:2], self._lm_head + self._routers + adaptive_dense, both[2:], adaptive_dense)

    def total(self, routes: Sequence[Routes]) -> Total:
        """Add up the compute of tokens: one call for many costs about as much as `usage` of one."""
        total = Total()
        for _, group in groupby(routes, key=lambda one: one.exits_open.tobytes()):
            one = joined(list(group))
            spent, run = self.spent(one), one.layers_run.sum(axis=1)  # (L,)
            chosen = one.selected_heads
            total += Total(
                tokens=one.layers_run.shape[1],
                layers=int(run.sum()),
                experts=int(one.selected_experts.sum()),
                heads=int(run @ self._heads_of if chosen is None else chosen.sum()),
                executed_flops=float(spent.executed[0].sum()),
                dense_flops=float(spent.dense[0].sum()),
                adaptive_flops=float(spent.adaptive[0].sum()),
                adaptive_dense_flops=float(spent.adaptive_dense[0].sum()),
                executed_bytes=float(spent.executed[1].sum()),
            )
        return total

    def _counters(self, routes: Routes) -> Floats:
        """Count how often each part ran, (8 * L, T).

        The parts: block, keys seen, experts, heads, heads times keys seen, skipped, depth router, exit check.
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
        # After the layer at which a token left, neither the depth router nor the exit check runs for it.
        counters[6] = (routes.exit_layer < 0) | (self._index <= routes.exit_layer)
        np.multiply(counters[6], routes.exits_open[:, None], out=counters[7])
        return counters.reshape(8 * L, T)

    def usage(self, routes: Routes, token: int = -1) -> Usage:
        """Return what one token of a pass used; by default the last, from which the next token is chosen."""
        one = at(routes, token)
        spent = self.spent(one)
        run = one.layers_run[:, 0].tolist()
        exit_layer = int(one.exit_layer[0])
        return Usage(
            experts=_ids(one.selected_experts),
            heads=tuple(heads if ran else () for ran, heads in zip(run, self._heads, strict=True))
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
    """Return for each layer the indices that are True in `selected` (L, 1, n)."""
    ids: list[list[int]] = [[] for _ in selected]
    for layer, one in zip(*(axis.tolist() for axis in selected[:, 0].nonzero()), strict=True):
        ids[layer].append(one)
    return tuple(map(tuple, ids))
