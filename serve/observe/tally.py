"""Counts of the compute of one model: experts, layers, exits and FLOPs of its new tokens.

L layers, E experts of the widest layer.
"""

import threading
from collections.abc import Iterator

import numpy as np

from ...runtime.execution.usage.routes import joined
from ...runtime.format.manifest import Manifest
from ...runtime.generation.request import Token

FLUSH_EVERY = 64
"""Tokens of a job that are counted together: alone, each would cost the engine's thread 50 microseconds."""


class Tally:
    """Sums over the new tokens of one model. `add` may be called by any thread.

    Args:
        manifest: The model.
    """

    def __init__(self, manifest: Manifest) -> None:
        layers = manifest.model.layers
        self.num_experts = [layer.num_experts for layer in layers]
        self.exit_layers = [index for index, layer in enumerate(layers) if layer.exit]
        self._lock = threading.Lock()
        self._experts = np.zeros((len(layers), max(self.num_experts, default=0)), dtype=np.int64)  # (L, E)
        self._layers = np.zeros(len(layers), dtype=np.int64)  # (L,)
        self._exits = np.zeros(len(layers) + 1, dtype=np.int64)  # (L + 1,): the first counts tokens that stayed
        self._executed = self._dense = 0.0

    def add(self, tokens: list[Token]) -> tuple[float, float]:
        """Count tokens; return their executed and dense FLOPs."""
        executed = dense = 0.0
        by_exits: dict[bytes, list[Token]] = {}  # routes can be joined where the same exits were open
        for token in tokens:
            by_exits.setdefault(token.routes.exits_open.tobytes(), []).append(token)
        for group in by_exits.values():
            routes = joined([token.routes for token in group])
            spent = group[0].meter.spent(routes)
            some, every = float(spent.executed[0].sum()), float(spent.dense[0].sum())
            experts = routes.selected_experts.sum(axis=1)  # (L, E of the graph)
            with self._lock:
                self._experts[:, : experts.shape[1]] += experts
                self._layers += routes.layers_run.sum(axis=1)
                self._exits += np.bincount(routes.exit_layer + 1, minlength=len(self._exits))
                self._executed += some
                self._dense += every
            executed += some
            dense += every
        return executed, dense

    @property
    def flops(self) -> tuple[float, float]:
        """Executed and dense FLOPs so far."""
        with self._lock:
            return self._executed, self._dense

    def experts(self) -> Iterator[tuple[int, int, int]]:
        """Yield layer, expert and the tokens that used it, for each expert that the model has."""
        with self._lock:
            counts = self._experts.tolist()
        for layer, number in enumerate(self.num_experts):
            for expert in range(number):
                yield layer, expert, counts[layer][expert]

    def layers(self) -> Iterator[tuple[int, int]]:
        """Yield each layer and the tokens that ran it."""
        with self._lock:
            counts = self._layers.tolist()
        yield from enumerate(counts)

    def exits(self) -> Iterator[tuple[str, int]]:
        """Yield each layer with an exit and the tokens that left there, then "none" and those that did not leave."""
        with self._lock:
            counts = self._exits.tolist()
        for layer in self.exit_layers:
            yield str(layer), counts[layer + 1]
        yield "none", counts[0]
