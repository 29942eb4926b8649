"""The tokens that may follow in a text that must match a grammar: the interface to `runtime/structured`."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class TokenMask(Protocol):
    """The tokens that one text may continue with."""

    @property
    def ended(self) -> bool:
        """Whether the text is complete and nothing can follow it."""

    def allowed(self) -> NDArray[np.uint32]:
        """Return a bit for each token, the lowest of the first word first: 1 where it may follow."""

    def accept(self, token: int) -> None:
        """Add the token that was chosen, one of those allowed."""


class Grammar(Protocol):
    """What texts must match."""

    def mask(self) -> TokenMask:
        """Return the mask of a new text."""
