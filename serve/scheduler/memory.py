"""The memory for keys, values and states: how many slots of how many tokens fit."""

from dataclasses import dataclass

from ...contract.errors import UserError
from ...runtime.execution.memory.budget import available_memory, slot_bytes
from ...runtime.execution.memory.kv_cache import ROUND_CAPACITY
from ...runtime.format.manifest import KV, Model

SHARE_OF_FREE = 0.5
"""Share of the free memory for keys, values and states where none was given."""


@dataclass(frozen=True)
class Room:
    """The slots of a model."""

    slots: int
    capacity: int
    """Tokens of a slot."""
    bytes: int


def share_of_memory(kv_memory: int | None, models: int) -> int:
    """Return the bytes for keys, values and states of one of `models` models."""
    total = int(available_memory() * SHARE_OF_FREE) if kv_memory is None else kv_memory
    return total // max(models, 1)


def fit(model: Model, kv: KV, budget: int, slots: int) -> Room:
    """Return the most room within `budget` bytes: fewer slots first, then fewer tokens.

    Fewer slots make clients wait; fewer tokens refuse requests that the model could answer.

    Args:
        model: The shapes of the model.
        kv: Precision of keys and values.
        budget: Bytes.
        slots: The most slots.

    Raises:
        UserError: Not even the smallest slot fits.
    """

    def size(slots: int, capacity: int) -> int:
        return slot_bytes(model, capacity, kv, slots)

    context = model.context_length
    fitting = next((count for count in range(slots, 0, -1) if size(count, context) <= budget), 0)
    if fitting:
        return Room(fitting, context, size(fitting, context))
    low, high = 0, context // ROUND_CAPACITY  # blocks that fit, and that do not or are the whole context
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(1, middle * ROUND_CAPACITY) <= budget else (low, middle - 1)
    if not low:
        least = size(1, min(ROUND_CAPACITY, context))
        raise UserError(
            f"found {budget / 2**20:.3g} MiB for keys, values and states of this model, expected at least "
            f"{least / 2**20:.3g} MiB, which {min(ROUND_CAPACITY, context)} tokens take; raise --kv-memory"
        )
    return Room(1, low * ROUND_CAPACITY, size(1, low * ROUND_CAPACITY))
