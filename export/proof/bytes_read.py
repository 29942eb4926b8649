"""Prove by the bytes of packed weights that our operators read that what a token did not choose was not multiplied.

L layers, H heads, W width of a head, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...runtime.dial import Thresholds
from ...runtime.execution.session import Session
from ...runtime.execution.usage.routes import Routes
from ...runtime.format.manifest import Target
from ...runtime.ops.layout import BLOCK, BLOCK_BYTES, GROUP, padded
from ...runtime.ops.library import Library
from ...train.model import ModelConfig, ThresholdTensors
from ..graph.builder import Array
from ..mixer_costs import gate_rows


@dataclass(frozen=True)
class BytesProof:
    """The comparison of the bytes read with those that the manifest states for the usage that the graph reports."""

    tokens: int
    """Decoded tokens."""
    read: int
    """Bytes of packed weights that the operators read."""
    dense: int
    """Bytes that the same tokens would have read with every layer, expert and head, and without exit checks."""
    failures: list[str]
    """The tokens whose bytes differ, for the user."""

    def report(self) -> dict[str, Any]:
        """Return the figures for the manifest."""
        return {
            "tokens": self.tokens,
            "bytes_read": self.read,
            "bytes_dense": self.dense,
            "passed": not self.failures,
        }

    def line(self) -> str:
        """Return one line for the user."""
        stated = "as the model reports" if not self.failures else "NOT as the model reports"
        return (
            f"weights read for {self.tokens} decoded tokens: {self.read / 2**20:.2f} of {self.dense / 2**20:.2f} MiB, "
            f"{stated}"
        )


def prove_bytes(
    session: Session, library: Library, config: ModelConfig, ids: Sequence[int], thresholds: Sequence[ThresholdTensors]
) -> BytesProof:
    """Decode `ids` one by one from an empty cache, with each of `thresholds` in turn, and count the bytes read."""
    target = session.manifest.targets[session.target]
    sequence = session.sequence(capacity=len(ids))
    read, failures = 0, []
    for position, token in enumerate(ids):
        at = thresholds[position % len(thresholds)]
        sequence.thresholds = Thresholds(**{name: values.numpy() for name, values in at.given().items()})
        before = library.bytes_read()
        routes = sequence.step(token).routes
        counted, stated = library.bytes_read() - before, packed_bytes_of(target, config, routes)
        read += counted
        if counted != stated:
            failures.append(f"token {position}: {counted} bytes of weights read, the model reports use of {stated}")
    return BytesProof(len(ids), read, len(ids) * _dense(target, config), failures)


def packed_bytes_of(target: Target, config: ModelConfig, routes: Routes) -> int:
    """Return the bytes of packed weights that one token reads by the tables of the manifest, for its routes (T = 1)."""
    table = target.costs.weight_bytes
    total, left = table.lm_head, int(routes.exit_layer[0])
    for i, layer in enumerate(table.layers):
        if routes.layers_run[i, 0]:
            total += layer.attention - _not_packed(config, i) + layer.shared_expert
            total += layer.expert * int(routes.selected_experts[i, 0].sum())
            if routes.selected_heads is not None:
                total += slices(target, config, routes.selected_heads[i, 0])
        else:
            total += layer.skipped_kv
        checks = i in config.depth.exit_layers and config.depth.exit_criterion != "router"
        if checks and routes.exits_open[i] and (left < 0 or i <= left):
            total += layer.exit_check
    return round(total)


def slices(target: Target, config: ModelConfig, selected: Array) -> float:
    """Return the bytes of q and o that chosen heads (H,) bool touch: whole groups of outputs, whole blocks of inputs.

    Where the width of a head is a multiple of a group these are equal shares, as the manifest's `head` states them.
    """
    block_bytes = BLOCK_BYTES[target.precisions.attention]
    columns = np.repeat(selected, config.resolved_head_dim)  # (H * W,)
    groups, blocks = (
        np.add.reduceat(columns.astype(np.int64), np.arange(0, len(columns), size)) > 0 for size in (GROUP, BLOCK)
    )
    rows, inputs = padded(config.dim, config.dim)
    return float(block_bytes * (int(groups.sum()) * (inputs // BLOCK) + int(blocks.sum()) * (rows // GROUP)))


def _not_packed(config: ModelConfig, layer: int) -> float:
    """Return the bytes of CoPE's embeddings, or of the rows of gates of a mixer, which are float32 and not packed."""
    if not config.attends(layer):
        return sum(4.0 * inputs * outputs for inputs, outputs in gate_rows(config, layer))
    if config.positions_of(layer) != "cope":
        return 0.0
    return 4.0 * config.resolved_head_dim * config.attention.max_positions


def _most_experts(config: ModelConfig, layer: int) -> int:
    """Return the most experts that a token can use; a dense FFN counts as one."""
    return 1 if config.is_dense(layer) else config.ffn.candidates


def _dense(target: Target, config: ModelConfig) -> int:
    table = target.costs.weight_bytes
    layers = (
        one.attention - _not_packed(config, i) + one.shared_expert + one.expert * _most_experts(config, i)
        + one.head * config.num_heads
        for i, one in enumerate(table.layers)
    )  # fmt: skip
    return round(table.lm_head + sum(layers))
