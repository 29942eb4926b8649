"""The states of recurrent layers: memory of constant size in which a layer keeps what it needs of the tokens so far.

S slots. As with a KV cache, every array is bound once, and the graph writes new states over the old ones. A state
cannot be cut back to an earlier token as keys and values can: going back needs a copy.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...format.manifest import Model

MOST_COPIES = 8
"""Copies of its states that a sequence holds, apart from the one for a draft."""
SPACING = 128
"""Tokens after which a sequence copies its states, at the ends of passes. Where sequences run alone, a prefix is reused
in steps of as many tokens (`ALONE_GRID`)."""

Copy = list[NDArray[np.float32]]
"""The states of one slot, in the order of the layers. Sequences share copies, so nothing writes them."""


class States:
    """The states of every recurrent layer and slot; empty in a model without such layers.

    Args:
        ort: The module onnxruntime.
        model: The shapes.
        device: "cpu" or "cuda".
        slots: Sequences to hold.
    """

    def __init__(self, ort: Any, model: Model, device: str, slots: int = 1) -> None:
        self._arrays = {name: np.zeros(shape, np.float32) for name, shape in state_shapes(model, slots).items()}
        self._on_device = device != "cpu"
        # On the CPU an OrtValue shares the memory of its array.
        self.values = {name: ort.OrtValue.ortvalue_from_numpy(array, device, 0) for name, array in self._arrays.items()}

    def begin(self, slot: int) -> None:
        """Set the states of a slot to zero: no token was seen."""
        if self._on_device:
            self.restore(slot, [np.zeros_like(array[0]) for array in self._arrays.values()])
            return
        for array in self._arrays.values():
            array[slot] = 0

    def copied(self, slot: int) -> Copy:
        """Return a copy of the states of a slot."""
        if self._on_device:
            return [value.numpy()[slot].copy() for value in self.values.values()]
        return [array[slot].copy() for array in self._arrays.values()]

    def restore(self, slot: int, copy: Copy) -> None:
        """Overwrite the states of a slot with a copy."""
        for (name, array), one in zip(self._arrays.items(), copy, strict=True):
            if not self._on_device:
                array[slot] = one
                continue
            whole = self.values[name].numpy() if len(array) > 1 else np.empty_like(array)
            whole[slot] = one
            self.values[name].update_inplace(whole)


def state_shapes(model: Model, slots: int = 1) -> dict[tuple[str, int], tuple[int, ...]]:
    """Map (name, layer) of every state to its shape, (S, ...)."""
    each = [(index, layer.states) for index, layer in enumerate(model.layers)]
    return {(name, index): (slots, *shape) for index, states in each for name, shape in states.items()}


def state_bytes(model: Model) -> int:
    """Return the bytes of the states of one sequence, whatever its length."""
    return sum(math.prod(shape) for shape in state_shapes(model).values()) * np.dtype(np.float32).itemsize
