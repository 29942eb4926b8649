"""The KV cache: the memory that a sequence and the graph share.

L layers, B sequences, T tokens, K key/value heads, C capacity, W width of a head. Every array is bound once; ONNX
Runtime and Python read and write the same memory.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..format.manifest import KV, Manifest, Model

BATCH = 1
"""Sequences of one session. The graph takes more at T = 1."""
ROUND_CAPACITY = 32
"""Tokens to which a capacity is rounded up, so that generations of similar length reuse the memory."""
THRESHOLDS = ("router_top_p", "depth_threshold", "exit_threshold")
"""Inputs that every graph has."""
DTYPE: dict[KV, Any] = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}
SCALE_BYTES = 4
"""Bytes of the scale of an int8 key or value."""

CHUNK = 64
"""Tokens of one pass of a prompt that is longer than a ring; a ring holds a window and one chunk.

With half as many, the experts of a chunk would see too few rows to be worth reading. With twice as many, every decoded
token would pass over 64 more cells that its window hides, in every layer.
"""


class Cache:
    """Keys and values of every layer, the number of tokens that each holds, and the thresholds in force.

    Past and present are one OrtValue: the graph writes new keys in place, and nothing is copied as the text grows.
    The cache of a layer with a window is a ring buffer of `ring` cells.

    Args:
        ort: The module onnxruntime.
        manifest: The model.
        device: "cpu" or "cuda".
        capacity: Tokens to hold, at most the context.
        kv: Precision of keys and values.
    """

    def __init__(self, ort: Any, manifest: Manifest, device: str, capacity: int, kv: KV = "fp32") -> None:
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
        # Zeros, not uninitialised memory: a masked position still counts as 0 * value, and 0 * nan is nan.
        self.values = {
            name: ort.OrtValue.ortvalue_from_numpy(
                np.zeros(shape, np.float32 if name[0] == "counted" else DTYPE[kv]), device, 0
            )
            for name, shape in cache_shapes(model, capacity, kv).items()
        }

    def inputs(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that are inputs of the graph, by name: lengths and thresholds, each (L, B)."""
        names = (*THRESHOLDS, "head_top_p") if self._dials_heads else THRESHOLDS
        return {name: getattr(self, name) for name in ("lengths", *names)}

    def longest_pass(self, begin: int, end: int) -> int:
        """Return how many of the tokens at positions `begin` to `end` one pass may compute.

        When the last of them is written, a ring must still hold everything that the first looks back at.
        """
        T = end - begin
        return T if all(cells >= min(end, window + T - 1) for window, cells in self._rings) else min(T, CHUNK)


def ring(window: int, capacity: int) -> int:
    """Return the number of cells in the cache of a layer: the whole capacity, or what a window and one chunk need."""
    needed = -(-(window + CHUNK - 1) // ROUND_CAPACITY) * ROUND_CAPACITY
    return min(capacity, needed) if window else capacity


def cache_shapes(model: Model, capacity: int, kv: KV = "fp32") -> dict[tuple[str, int], tuple[int, int, int, int]]:
    """Map (kind, layer) of every cache to its shape: keys and values (B, K, C, W), counted (B, 1, C, 1).

    In int8 each key and value has a float32 scale behind its W numbers.
    """
    width = model.head_dim + (SCALE_BYTES if kv == "int8" else 0)
    shapes = {}
    for index, layer in enumerate(model.layers):
        cells = ring(layer.window, capacity)
        for kind in ("key", "value"):
            shapes[kind, index] = (BATCH, model.num_kv_heads, cells, width)
        if model.counts_cells(index):
            shapes["counted", index] = (BATCH, 1, cells, 1)
    return shapes
