"""The memory that one generation and the graph share: caches, thresholds, and the inputs and outputs of a pass.

L layers, B sequences, T tokens, H query heads, K key/value heads, C capacity, V vocabulary, E experts. Every array here
is bound once; ONNX Runtime reads and writes it where it lies, and Python reads and writes the same bytes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..format.manifest import Manifest, Model

BATCH = 1  # the graph takes more at T = 1; this runtime runs one sequence
ROUND_CAPACITY = 32  # tokens; a few more than needed cost little, and generations of about one length share the memory

THRESHOLDS = ("router_top_p", "depth_threshold", "exit_threshold")  # that every graph has

CHUNK = 64
"""Tokens of one pass of a prompt that is longer than a ring; a ring holds a window and one chunk.

Half of it, and the experts of a chunk would see too few rows to be worth reading; twice, and every decoded token would
pass over 64 more cells that its window hides, in every layer.
"""


class Cache:
    """Keys and values of every layer, how many tokens each holds, and the thresholds in force.

    Past and present are one OrtValue: the graph writes new keys in place, and nothing is copied as the text grows.
    The cache of a layer with a window is a ring of `ring` cells, which the graph writes round and round.
    """

    def __init__(self, ort: Any, manifest: Manifest, device: str, capacity: int) -> None:
        model = manifest.model
        L = model.num_layers
        self.capacity = capacity
        self.lengths = np.zeros((L, BATCH), np.int64)
        self.router_top_p = np.ones((L, BATCH), np.float32)
        self.depth_threshold = np.zeros((L, BATCH), np.float32)
        self.exit_threshold = np.ones((L, BATCH), np.float32)
        self.head_top_p = np.ones((L, BATCH), np.float32)
        self._dials_heads = model.dials_heads
        self._rings = [(layer.window, ring(layer.window, capacity)) for layer in model.layers if layer.window]
        # Zeros, not whatever was there: a masked position still takes part as 0 * value, and 0 * nan is nan.
        self.values = {
            name: ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32), device, 0)
            for name, shape in cache_shapes(model, capacity).items()
        }

    def inputs(self) -> dict[str, NDArray[Any]]:
        names = (*THRESHOLDS, "head_top_p") if self._dials_heads else THRESHOLDS
        return {name: getattr(self, name) for name in ("lengths", *names)}

    def longest_pass(self, begin: int, end: int) -> int:
        """How many of the tokens at positions `begin` to `end` one pass may compute.

        A ring must still hold, when the last of them is written, all that the first looks back at.
        """
        T = end - begin
        return T if all(cells >= min(end, window + T - 1) for window, cells in self._rings) else min(T, CHUNK)


def ring(window: int, capacity: int) -> int:
    """Cells of the cache of a layer: the whole capacity, or what a window and one chunk need."""
    needed = -(-(window + CHUNK - 1) // ROUND_CAPACITY) * ROUND_CAPACITY
    return min(capacity, needed) if window else capacity


def cache_shapes(model: Model, capacity: int) -> dict[tuple[str, int], tuple[int, int, int, int]]:
    """(kind, layer) of every cache -> its shape: keys and values (B, K, C, W), and (B, 1, C, 1) of the counted."""
    shapes = {}
    for index, layer in enumerate(model.layers):
        cells = ring(layer.window, capacity)
        for kind in ("key", "value"):
            shapes[kind, index] = (BATCH, model.num_kv_heads, cells, model.head_dim)
        if model.counts_cells(index):
            shapes["counted", index] = (BATCH, 1, cells, 1)
    return shapes
