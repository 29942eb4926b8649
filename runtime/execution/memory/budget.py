"""The memory that a batch may take."""

from pathlib import Path

from ....contract.errors import UserError
from ...format.manifest import KV, Model
from .kv_cache import cache_bytes
from .states import MOST_COPIES, state_bytes

UNASKED_BYTES = 64 * 2**20
"""Caches up to this size are allocated without asking how much memory is free, which takes milliseconds."""
CGROUP = Path("/sys/fs/cgroup")


def slot_bytes(model: Model, capacity: int, kv: KV = "fp32", slots: int = 1) -> int:
    """Return the most bytes that sequences take: their KV caches, and their states with the copies of these.

    Args:
        model: The shapes.
        capacity: Tokens of a sequence. States do not grow with them.
        kv: Precision of keys and values.
        slots: Sequences.
    """
    return cache_bytes(model, capacity, kv, slots) + slots * states_of_slot(model)


def states_of_slot(model: Model) -> int:
    """Return the most bytes of the states of a sequence: those in use, the copies, and the copy for a draft."""
    return (1 + MOST_COPIES + 1) * state_bytes(model)


def check_fits(needed: int, slots: int, capacity: int) -> None:
    """Refuse caches and states that do not fit the memory that is free.

    Raises:
        UserError: They do not; the message has the numbers.
    """
    if needed <= UNASKED_BYTES:
        return
    free = available_memory()
    if needed > free:
        texts = "one sequence" if slots == 1 else f"{slots} sequences"
        raise UserError(
            f"found {texts} of {capacity} tokens, whose caches and states take {needed / 2**20:,.0f} MiB; "
            f"{free / 2**20:,.0f} MiB of memory are free; ask for fewer at a time (--batch, --beams) or for fewer new "
            "tokens (--max-new-tokens)"
        )


def available_memory() -> int:
    """Return the bytes that this process can still take without swapping, within the limit of its container."""
    import psutil  # takes milliseconds, which a small model does not pay

    available = int(psutil.virtual_memory().available)
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return available
    return available if limit == "max" else min(available, max(int(limit) - int(used), 0))
