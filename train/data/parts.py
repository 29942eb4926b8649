"""One source before it is tokenised: its items, what the scan counted, and where each is cut."""

from collections.abc import Iterator

from ...contract.errors import UserError
from .augment.rewrite import Rewriter
from .chat import ChatTemplate
from .documents import Segment, segments
from .scan import Scan
from .sources import Item, Source


class Part:
    """One source, scanned, with the place where each item is cut into training and held-out text."""

    def __init__(self, source: Source, scanned: list[tuple[Item, Scan]], val_fraction: float) -> None:
        self.name = source.name
        self.weight = source.weight
        self.epochs = source.epochs
        self.augment = source.augment
        self.items = [item for item, _ in scanned]
        self.scans = [scan for _, scan in scanned]
        # At least one character or document of each item trains, whatever the fraction.
        self.cuts = [max(1, int(scan.length * (1 - val_fraction))) if val_fraction < 1 else 0 for scan in self.scans]
        self.num_bytes = sum(scan.num_bytes for scan in self.scans)
        self.chats = sum(scan.chats for scan in self.scans)

    def identity(self) -> list[list[object]]:
        """List all that the content of the cache entry depends on; paths do not count."""
        return [
            [item.kind == "text", scan.digest, cut]
            for item, scan, cut in zip(self.items, self.scans, self.cuts, strict=True)
        ]

    def left(self, rewriter: Rewriter) -> list[bool]:
        """Return for each item whether `rewriter` leaves it unchanged, judged by its name."""
        return [rewriter.leaves(item.name) for item in self.items]

    def segments(
        self, template: ChatTemplate, answers_only: bool, rewriter: Rewriter | None = None
    ) -> Iterator[Segment]:
        """Read the text of all items in order; training text of an item comes before its held-out text.

        With `rewriter` only the training text, rewritten.
        """
        for number, (item, cut) in enumerate(zip(self.items, self.cuts, strict=True)):
            own = None if rewriter is None or rewriter.leaves(item.name) else rewriter
            for segment in segments(item, cut, template, answers_only, own, number):
                if rewriter is None or not segment.held_out:
                    yield segment


def share_out(parts: list[Part], tokens: list[int]) -> list[float]:
    """Compute the share of windows of each source.

    Raises:
        UserError: the given weights leave nothing for sources without one.
    """
    given = [part.weight for part in parts]
    if all(weight is not None for weight in given):
        total = sum(weight for weight in given if weight is not None)
        return [weight / total for weight in given if weight is not None]
    left = 1 - sum(weight for weight in given if weight is not None)
    if left <= 0:
        names = ", ".join(part.name for part in parts if part.weight is None)
        raise UserError(
            f"the given weights add up to {1 - left:g}, which leaves nothing for {names}; give every source a weight, "
            "or weights that add up to less than 1"
        )
    free = sum(count for count, weight in zip(tokens, given, strict=True) if weight is None)
    return [
        left * count / max(1, free) if weight is None else weight for count, weight in zip(tokens, given, strict=True)
    ]
