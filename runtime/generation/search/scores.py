"""Log-probabilities and scores of texts. V vocabulary."""

import math

import numpy as np

from ..sampling.sampler import Scores


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


def length_divisor(length: int, length_penalty: float) -> float:
    """Return what the log-probability of a text of `length` tokens is divided by.

    Source: Wu et al. 2016 (arXiv 1609.08144), equation 14, without the coverage penalty.
    """
    return float(((5 + length) / 6) ** length_penalty)
