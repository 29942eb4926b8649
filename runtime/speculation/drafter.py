"""The interface of what guesses tokens ahead."""

from collections.abc import Sequence
from typing import Protocol


class Drafter(Protocol):
    """Guesses the next tokens of one text, and learns from what the model says."""

    def draft(self, ids: Sequence[int], most: int, others: int = 0) -> list[int]:
        """Return tokens that may follow, in order; none where checking them would not pay.

        Args:
            ids: Prompt and text so far. From call to call it only grows; the last token is not computed yet.
            most: The most tokens that there is room for.
            others: Rows that other sequences have in the coming pass.
        """

    def verified(self, drafted: int, accepted: int, rows: int, seconds: float, again: int = 0) -> None:
        """Take note of a pass that decoded this text, with drafted tokens or without.

        Args:
            drafted: Tokens that `draft` returned.
            accepted: How many of them were right.
            rows: Tokens of the whole pass.
            seconds: Time of the whole pass, and of copying states for the draft.
            again: Rows of the pass that computed tokens of this text again, because the draft before was wrong.
        """

    def verdict(self) -> str | None:
        """Return one line of why there are no drafts; None where they pay, or where there is nothing to say."""
