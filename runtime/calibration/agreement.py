"""How early tokens may leave so that a stated share of them still makes the whole model's choice.

Source: CALM (Schuster et al. 2022, arXiv 2207.07061), section 3.3 and 4, by Learn then Test (Angelopoulos et al. 2021,
arXiv 2110.01052), section 4.1: the thresholds are tested in a fixed order, from never leaving downwards, each for "more
than 1 - share of the tokens choose differently"; the first that is not rejected ends the walk, so the chance that any
accepted threshold breaks its promise is at most 1 - confidence, without correction for the number of tests.
Departs from it: the p-value is the exact binomial tail in place of Hoeffding's bound. Tokens of one text are not
independent, as the test takes them to be; the promise is for texts like the one measured.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
GRID = (0.999, 0.995, 0.99, *(round(1 - 0.02 * i, 2) for i in range(1, 51)))
"""Falling; fixed before any text is seen, as the test demands."""


@dataclass(frozen=True)
class Compared:
    """Choices of a model that leaves early, held against those of the whole model on the same tokens."""

    tokens: int
    different: int
    layers_per_token: float


@dataclass(frozen=True)
class Promise:
    """The exit threshold for an asked share; `compared` is what was measured there."""

    share: float
    exit_threshold: float
    compared: Compared


def promises(compare: Callable[[float], Compared], shares: Sequence[float]) -> list[Promise]:
    """For each share the least exit threshold that keeps it with CONFIDENCE; 1, which never leaves, keeps any."""
    whole = compare(1.0)
    walks = {share: Promise(share, 1.0, whole) for share in shares}
    open_shares = set(shares)
    for threshold in GRID:
        if not open_shares:
            break
        compared = compare(threshold)
        for share in sorted(open_shares):
            if p_value(compared.different, compared.tokens, 1 - share) <= 1 - CONFIDENCE:
                walks[share] = Promise(share, threshold, compared)
            else:
                open_shares.discard(share)
    return [walks[share] for share in sorted(shares)]


def p_value(different: int, tokens: int, rate: float) -> float:
    """Chance of at most `different` of `tokens`, if each differs with probability `rate`: the exact binomial tail."""
    logs = [
        math.lgamma(tokens + 1) - math.lgamma(k + 1) - math.lgamma(tokens - k + 1)
        + k * math.log(rate) + (tokens - k) * math.log1p(-rate)
        for k in range(different + 1)
    ]  # fmt: skip
    return min(1.0, math.fsum(map(math.exp, logs)))
