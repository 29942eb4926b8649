"""The slots of a batch: who gets one, and the ended texts that stay in them until they are needed."""

from ..execution.batch import Batch
from ..execution.sequence import Sequence
from .prefixes import longest_prefix
from .request import Request


class Slots:
    """Gives the slots of a batch to requests, each with the longest beginning of its prompt that is in memory.

    Args:
        batch: Whose slots they are; nothing else may take one.
        grid: A reused prefix is a multiple of this many tokens.
    """

    def __init__(self, batch: Batch, grid: int) -> None:
        self._batch, self._grid = batch, grid
        self._ended: dict[Sequence, None] = {}  # the oldest first

    def take(self, request: Request) -> tuple[Sequence, int]:
        """Return a sequence for a request, and how many first tokens of the prompt were in another one.

        The sequence continues a prefix in memory, or is empty.
        """
        batch = self._batch
        others = [] if request.reads_all else batch.sequences
        origin, count, shared = longest_prefix(request.ids, request.thresholds, others, self._grid)
        if origin is None:
            self._make_room()
            return batch.join(request.thresholds, request.capacity), shared
        # An ended sequence whose greater part is reused, or the only one that can give up its slot, is continued.
        if origin in self._ended and not batch.free and (2 * count > len(origin.ids) or len(self._ended) == 1):
            del self._ended[origin]
            return batch.resume(origin, count, request.capacity), shared
        if origin in self._ended:
            self._ended[origin] = self._ended.pop(origin)  # the last used
        self._make_room(keep=origin)
        return batch.fork(origin, count, request.capacity), shared

    def keep(self, sequence: Sequence) -> None:
        """Let the text of an ended request stay until its slot is needed, for a prompt that begins like it."""
        self._ended[sequence] = None

    def clear(self, sequence: Sequence) -> None:
        """Free the slot of a failed request, and clear its cells: they may hold numbers that are not finite."""
        if sequence in self._batch.sequences:
            self._batch.leave(sequence, clear=True)

    def _make_room(self, keep: Sequence | None = None) -> None:
        if not self._batch.free:
            oldest = next(one for one in self._ended if one is not keep)
            del self._ended[oldest]
            self._batch.leave(oldest)
