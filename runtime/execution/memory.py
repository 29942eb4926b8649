"""The memory that a batch may take."""

from pathlib import Path

from ...contract.errors import UserError

UNASKED_BYTES = 64 * 2**20
"""Caches up to this size are allocated without asking how much memory is free, which takes milliseconds."""
CGROUP = Path("/sys/fs/cgroup")


def check_fits(needed: int, slots: int, capacity: int) -> None:
    """Refuse caches that do not fit the memory that is free.

    Raises:
        UserError: They do not; the message has the numbers.
    """
    if needed <= UNASKED_BYTES:
        return
    free = available_memory()
    if needed > free:
        texts = "one sequence" if slots == 1 else f"{slots} sequences"
        raise UserError(
            f"found {texts} of {capacity} tokens, whose keys and values take {needed / 2**20:,.0f} MiB; "
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
