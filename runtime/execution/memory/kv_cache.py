"""The KV cache: the memory that sequences and the graph share.

L layers, S slots (one sequence each), K key/value heads, C capacity, W width of a head. Every array is bound once; ONNX
Runtime and Python read and write the same memory.
"""

import math
from typing import Any

import numpy as np

from ...format.manifest import KV, Manifest, Model
from ..usage.routes import Ints

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


CELL_BLOCK = 16
"""Cells whose keys our operators store together (`runtime/ops/src/kernels/attend_task.h`), so they are copied whole."""


class Cache:
    """Keys and values of every layer with attention and slot, and the number of tokens that each layer holds.

    Past and present are one OrtValue: the graph writes new keys in place, and nothing is copied as the text grows.
    The cache of a layer with a window is a ring buffer of `ring` cells.

    Args:
        ort: The module onnxruntime.
        manifest: The model.
        device: "cpu" or "cuda".
        capacity: Tokens of a slot, at most the context.
        kv: Precision of keys and values.
        slots: Sequences to hold.
    """

    def __init__(
        self, ort: Any, manifest: Manifest, device: str, capacity: int, kv: KV = "fp32", slots: int = 1
    ) -> None:
        model = manifest.model
        self.capacity = capacity
        self.lengths = np.zeros((model.num_layers, slots), np.int64)
        """(L, S): cells in use, an input of the graph."""
        self._written = np.zeros_like(self.lengths)  # most cells that were in use before a cut
        self._rings = [
            (index, layer.window, ring(layer.window, capacity))
            for index, layer in enumerate(model.layers)
            if 0 < ring(layer.window, capacity) < capacity
        ]
        # Zeros, not uninitialised memory: a masked position still counts as 0 * value, and 0 * nan is nan.
        self._arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in _arrays(model, capacity, kv, slots)}
        self._on_device = device != "cpu"
        # On the CPU an OrtValue shares the memory of its array.
        self.values = {name: ort.OrtValue.ortvalue_from_numpy(array, device, 0) for name, array in self._arrays.items()}

    def longest_pass(self, begin: int, end: int) -> int:
        """Return how many of the tokens at positions `begin` to `end` one pass may compute.

        When the last of them is written, a ring must still hold everything that the first looks back at.
        """
        T = end - begin
        return T if all(cells >= min(end, window + T - 1) for _, window, cells in self._rings) else min(T, CHUNK)

    def begin(self, slot: int) -> None:
        """Empty a slot. What its cells contain is written over as the next sequence grows."""
        self.lengths[:, slot] = self._written[:, slot] = 0

    def holds(self, slot: int, lengths: Ints) -> bool:
        """Return whether `slot` still holds all that a token after its first `lengths` (L,) cells looks back at.

        A ring has overwritten its oldest cells.
        """
        for index, window, cells in self._rings:
            length = int(lengths[index])
            overwritten = max(int(self.lengths[index, slot]), int(self._written[index, slot])) - cells
            if length > 0 and max(0, length - window + 1) < overwritten:
                return False
        return True

    def cut(self, slot: int, lengths: Ints) -> None:
        """Shorten every layer of a slot to `lengths` (L,), which it `holds`."""
        np.maximum(self._written[:, slot], self.lengths[:, slot], out=self._written[:, slot])
        self._written[lengths == 0, slot] = 0  # such a layer begins again
        self.lengths[:, slot] = lengths

    def copy(self, source: "Cache", from_slot: int, slot: int, lengths: Ints, equal: Ints | None = None) -> None:
        """Copy the first `lengths` (L,) cells of a slot of `source`, which holds them and may be this cache.

        Caches of our operators are copied at equal capacity only: their blocks of keys are those of one capacity.

        Args:
            source: Where to copy from.
            from_slot: Its slot.
            slot: The slot to write.
            lengths: Cells of each layer.
            equal: (L,) first cells that the slot holds already and that are not copied; None copies all.
        """
        most, first_cells = np.maximum(self._most(slot), source._most(from_slot)).tolist(), [0] * len(lengths)
        if equal is not None:
            first_cells = (equal // CELL_BLOCK * CELL_BLOCK).tolist()
        for name, array in self._arrays.items():
            origin, length = source._arrays[name], int(lengths[name[1]])
            cells, own = origin.shape[2], array.shape[2]
            first = first_cells[name[1]] if most[name[1]] <= min(cells, own) else 0  # else a ring has turned
            used = slice(first, min(-(-length // CELL_BLOCK) * CELL_BLOCK, cells, own))
            places: tuple[Any, Any] = (used, used)
            if length > min(cells, own) and cells != own:  # a ring that has turned: the cells that both can hold
                index = np.arange(length - min(cells, own), length)
                places = (index % own, index % cells)
            if self._on_device:
                whole = self.values[name].numpy()
                whole[slot][:, places[0]] = source.values[name].numpy()[from_slot][:, places[1]]
                self.values[name].update_inplace(whole)
            else:
                array[slot][:, places[0]] = origin[from_slot][:, places[1]]
        self._written[:, slot] = source._most(from_slot)
        self.lengths[:, slot] = lengths

    def _most(self, slot: int) -> Ints:
        """Return the most cells (L,) of a slot that were ever in use."""
        most: Ints = np.maximum(self.lengths[:, slot], self._written[:, slot])
        return most

    def clear(self, slot: int) -> None:
        """Overwrite the cells of a slot with zeros, after a sequence that wrote numbers that are not finite."""
        for name, array in self._arrays.items():
            if self._on_device:
                whole = self.values[name].numpy()
                whole[slot] = 0
                self.values[name].update_inplace(whole)
            else:
                array[slot] = 0


def ring(window: int, capacity: int) -> int:
    """Return the number of cells in the cache of a layer: the whole capacity, or what a window and one chunk need."""
    needed = -(-(window + CHUNK - 1) // ROUND_CAPACITY) * ROUND_CAPACITY
    return min(capacity, needed) if window else capacity


def cache_shapes(
    model: Model, capacity: int, kv: KV = "fp32", slots: int = 1
) -> dict[tuple[str, int], tuple[int, int, int, int]]:
    """Map (kind, layer) of every cache to its shape: keys and values (S, K, C, W), counted (S, 1, C, 1).

    A layer with a recurrent mixer has none.

    In int8 each key and value has a float32 scale behind its W numbers.
    """
    width = model.head_dim + (SCALE_BYTES if kv == "int8" else 0)
    shapes = {}
    for index, layer in enumerate(model.layers):
        if not layer.attends:
            continue
        cells = ring(layer.window, capacity)
        for kind in ("key", "value"):
            shapes[kind, index] = (slots, model.num_kv_heads, cells, width)
        if model.counts_cells(index):
            shapes["counted", index] = (slots, 1, cells, 1)
    return shapes


def cache_bytes(model: Model, capacity: int, kv: KV = "fp32", slots: int = 1) -> int:
    """Return the bytes of a cache."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for _, (shape, dtype) in _arrays(model, capacity, kv, slots))


def _arrays(model: Model, capacity: int, kv: KV, slots: int) -> list[tuple[tuple[str, int], tuple[Any, Any]]]:
    shapes = cache_shapes(model, capacity, kv, slots)
    return [(name, (shape, np.float32 if name[0] == "counted" else DTYPE[kv])) for name, shape in shapes.items()]
