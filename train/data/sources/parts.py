"""One source before it is tokenised: its items, what the scan counted, and where each is cut."""

from collections.abc import Iterator, Sequence

from ....contract.errors import UserError
from ..augment.rewrite import Rewriter
from .chat import ChatTemplate
from .documents import Segment, segments
from .scan import Scan
from .sources import Item, Source


class Part:
    """One source, scanned, with the place where each item is cut into training and held-out text."""

    def __init__(
        self,
        source: Source,
        scanned: list[tuple[Item, Scan]],
        val_fraction: float,
        loss_on: str = "all",
        lead: str | None = None,
    ) -> None:
        """Cut a scanned source.

        Args:
            source: The source.
            scanned: Its items, with what the scan counted.
            val_fraction: The part that is held out.
            loss_on: Which tokens are scored.
            lead: The text of the token that begins each of its documents; None for none.
        """
        self.name, self.loss_on, self.lead = source.name, loss_on, lead
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

    @property
    def masked(self) -> bool:
        """Whether some of its tokens are not scored."""
        return (self.loss_on == "answers" and self.chats > 0) or self.lead is not None

    def segments(self, template: ChatTemplate, rewriter: Rewriter | None = None) -> Iterator[Segment]:
        """Read the text of all items in order; training text of an item comes before its held-out text.

        With `rewriter` only the training text, rewritten.
        """
        answers_only = self.loss_on == "answers"
        for number, (item, cut) in enumerate(zip(self.items, self.cuts, strict=True)):
            own = None if rewriter is None or rewriter.leaves(item.name) else rewriter
            for segment in segments(item, cut, template, answers_only, own, number):
                if rewriter is None or not segment.held_out:
                    yield segment


def share_out(
    names: Sequence[str],
    given: Sequence[float | None],
    sizes: Sequence[float],
    what: str = "weight",
    of: str = "source",
) -> list[float]:
    """Compute shares that sum to 1: those given, and for the others, in proportion to their sizes, what these leave.

    Args:
        names: What shares are computed for.
        given: The given shares; if there is one for each, they may have any sum.
        sizes: The sizes.
        what: What messages call a given share.
        of: What messages call that which has it.

    Raises:
        UserError: the given shares leave nothing for those without one.
    """
    shares = [share for share in given if share is not None]
    if len(shares) == len(given):
        total = sum(shares)
        return [share / total for share in shares]
    left = 1 - sum(shares)
    if left <= 0:
        rest = ", ".join(name for name, share in zip(names, given, strict=True) if share is None)
        raise UserError(
            f"the given {what}s add up to {1 - left:g}, which leaves nothing for {rest}; give every {of} a {what}, "
            f"or {what}s that add up to less than 1"
        )
    free = sum(size for size, share in zip(sizes, given, strict=True) if share is None)
    return [left * size / max(1, free) if share is None else share for size, share in zip(sizes, given, strict=True)]
