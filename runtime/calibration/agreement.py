"""Find how early tokens may leave so that a stated share of them is still chosen as by the whole model.

Source: CALM (Schuster et al. 2022, arXiv 2207.07061), section 3.3 and 4, by Learn then Test (Angelopoulos et al. 2021,
arXiv 2110.01052), section 4.1: the thresholds are tested in a fixed order, from never leaving downwards, each for "more
than 1 - share of the tokens differ"; the first hypothesis that is not rejected ends the walk. So the chance that an
accepted threshold breaks its bound is at most 1 - confidence, without a correction for the number of tests.
Departs from it: the p-value is the exact binomial tail instead of Hoeffding's bound. Tokens of one text are not
independent, as the test assumes; the bound is for texts like the one measured.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
GRID = (0.999, 0.995, 0.99, *(round(1 - 0.02 * i, 2) for i in range(1, 51)))
"""Exit thresholds to test, falling; fixed before any text is seen, as the test requires."""


@dataclass(frozen=True)
class Compared:
    """Choices of a model that leaves early, compared with those of the whole model on the same tokens."""

    tokens: int
    different: int
    """Tokens whose most probable successor differs."""
    layers_per_token: float


@dataclass(frozen=True)
class AgreementBound:
    """The exit threshold that keeps a share of the choices with CONFIDENCE."""

    share: float
    exit_threshold: float
    compared: Compared
    """The measurement at that threshold."""


def agreement_bounds(compare: Callable[[float], Compared], shares: Sequence[float]) -> list[AgreementBound]:
    """Find for each share the lowest exit threshold that keeps it with CONFIDENCE.

    Args:
        compare: Measures the choices at an exit threshold. At 1 no token leaves, which keeps every share.
        shares: Shares of tokens, above 0 and below 1.
    """
    whole = compare(1.0)
    walks = {share: AgreementBound(share, 1.0, whole) for share in shares}
    open_shares = set(shares)
    for threshold in GRID:
        if not open_shares:
            break
        compared = compare(threshold)
        for share in sorted(open_shares):
            if p_value(compared.different, compared.tokens, 1 - share) <= 1 - CONFIDENCE:
                walks[share] = AgreementBound(share, threshold, compared)
            else:
                open_shares.discard(share)
    return [walks[share] for share in sorted(shares)]


def p_value(different: int, tokens: int, rate: float) -> float:
    """Return the chance of at most `different` of `tokens` if each differs with probability `rate` (binomial tail)."""
    logs = [
        math.lgamma(tokens + 1) - math.lgamma(k + 1) - math.lgamma(tokens - k + 1)
        + k * math.log(rate) + (tokens - k) * math.log1p(-rate)
        for k in range(different + 1)
    ]  # fmt: skip
    return min(1.0, math.fsum(map(math.exp, logs)))
