"""Log-probabilities and scores of texts. V vocabulary."""

import math

import numpy as np

from ..draw import most_probable
from ..sampler import Scores, TokenChooser

FEW = 64
"""Up to this number of tokens, looking for the highest one again and again is faster than a partition."""


def log_normaliser(logits: Scores) -> float:
    """Return log(sum(exp(logits))) of logits (V,), in float64: a logit minus this is a log-probability.

    Raises:
        ArithmeticError: The logits are not finite numbers.
    """
    best = float(logits[logits.argmax()])  # nan, if there is one
    if not math.isfinite(best):
        raise ArithmeticError("the model gave logits that are not finite numbers")
    exact = logits.astype(np.float64)
    exact -= best
    np.exp(exact, out=exact)
    return best + math.log(float(exact.sum()))


def highest(logits: Scores, count: int) -> list[int]:
    """Return the indices of the `count` highest logits (V,), the highest first; of equal ones, the lower id first."""
    if count > FEW:
        ids = most_probable(logits, count)
        return ids[np.argsort(-logits[ids], kind="stable")].tolist()  # type: ignore[no-any-return]
    left, order = logits.copy(), []
    for _ in range(count):
        order.append(int(left.argmax()))
        left[order[-1]] = -np.inf
    return order


def length_divisor(length: int, length_penalty: float) -> float:
    """Return what the log-probability of a text of `length` tokens is divided by.

    Source: Wu et al. 2016 (arXiv 1609.08144), equation 14, without the coverage penalty.
    """
    return float(((5 + length) / 6) ** length_penalty)


class ScoringSampler:
    """Draws with another sampler, and records the log-probability of each token."""

    def __init__(self, sampler: TokenChooser, vocab_size: int) -> None:
        self.seed = sampler.seed
        self.logprob = 0.0
        """Sum over the tokens so far."""
        self._sampler = sampler
        self._vocab_size = vocab_size

    def choose(self, logits: Scores) -> int:
        """Return the next token from logits (V,).

        Raises:
            ArithmeticError: The logits are not finite numbers.
        """
        token = self._sampler.choose(logits)
        self.logprob += float(logits[token]) - log_normaliser(logits[: self._vocab_size])
        return token
