"""What a pass is asked for and what it returns, for one sequence."""

from collections.abc import Sequence as Ids
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .usage.cost import Meter, Usage
from .usage.routes import Routes

if TYPE_CHECKING:
    from .sequence import Sequence


class Work(NamedTuple):
    """Tokens to compute for one sequence."""

    sequence: "Sequence"
    ids: Ids[int]
    """Token ids after those that the sequence holds, at least one."""
    num_logits: int = 1
    """Tokens, from the last backwards, whose logits are returned; 0 to len(ids)."""


@dataclass(frozen=True)
class Step:
    """The result for one sequence."""

    logits: NDArray[np.float32]
    """(num_logits, V): logits of the last tokens. The array is not written again."""
    routes: Routes
    """The experts, heads and layers that every token used."""
    meter: Meter
    """Computes the cost of `routes`."""
    hidden: NDArray[np.float32] | None = None
    """(T, D): states of all tokens of the pass after the last norm; None where the graph does not give them. The array
    is not written again."""

    @cached_property
    def usage(self) -> Usage:
        """Usage of the last token, from which the next is chosen. Computed on first access."""
        return self.meter.usage(self.routes)
