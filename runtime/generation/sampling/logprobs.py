"""Log-probabilities of tokens: those of the model, before penalties, biases, masks, temperature and filters.

V vocabulary.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_LOGPROBS = 20
"""Alternatives that may be requested."""
BLOCK = 64
"""Logits of which the largest are compared first."""


class TokenLogprob(NamedTuple):
    """How probable a token was, in natural logarithms at temperature 1."""

    logprob: float | None
    """None for the first token of a prompt, which follows nothing."""
    top_logprobs: Mapping[int, float]
    """The most probable tokens at its place, the most probable first; of equally probable ones, the lower id first."""


def token_logprob(logits: NDArray[np.float32], token: int, alternatives: int) -> TokenLogprob:
    """Return the log-probability of `token`, and those of the most probable tokens.

    Args:
        logits: (V,) of the model, without padding of the vocabulary.
        token: An id.
        alternatives: How many of the most probable tokens to return.

    Raises:
        ArithmeticError: The logits are not finite numbers.
    """
    best = logits.max()
    if not np.isfinite(best):
        raise ArithmeticError("the model gave logits that are not finite numbers")
    whole = float(best) + float(np.log(np.exp(logits - best).sum(dtype=np.float64)))
    top = {int(one): float(logits[one]) - whole for one in most_probable_first(logits, alternatives)}
    return TokenLogprob(float(logits[token]) - whole, top)


def most_probable_first(logits: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Return the indices of the `count` largest logits, the largest first; of equal ones, the lower index first.

    Only those are sorted that reach the `count`-th of the largest logits of the blocks, which at least `count` do.
    """
    size, blocks = len(logits), len(logits) // BLOCK
    count = min(count, size)
    if count == 0:
        return np.zeros(0, np.intp)
    least = np.float32(-np.inf)
    if blocks >= count:
        largest = logits[: blocks * BLOCK].reshape(blocks, BLOCK).max(axis=1)
        least = np.partition(largest, blocks - count)[blocks - count]
    candidates = np.flatnonzero(logits >= least)
    return candidates[np.argsort(-logits[candidates], kind="stable")[:count]]
