"""Log-probabilities and scores of texts. V vocabulary."""

import math

import numpy as np
from numpy.typing import NDArray

from ..sampler import Scores, TokenChooser


def log_probabilities(logits: Scores) -> NDArray[np.float64]:
    """Return the log-softmax of logits (V,), in float64.

    Raises:
        ArithmeticError: The logits are not finite numbers.
    """
    best = float(logits[logits.argmax()])  # nan, if there is one
    if not math.isfinite(best):
        raise ArithmeticError("the model gave logits that are not finite numbers")
    exact = logits.astype(np.float64)
    exact -= best
    exact -= math.log(float(np.exp(exact).sum()))
    return exact


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
        self.logprob += float(log_probabilities(logits[: self._vocab_size])[token])
        return token
