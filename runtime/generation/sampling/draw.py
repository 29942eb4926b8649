"""The draw of a token with numpy, where the compiled one (`runtime/ops/src/sampling`) was not built: the same tokens.

n tokens stand in a table, row by row. A draw picks a column by its sum, then a row of it. All is float32; only sums
over columns or rows are float64.
"""

import numpy as np
from numpy.typing import NDArray

from ...ops.sampling import NO_CHANGES, Changes, DrawSettings, table_shape

# Of 2 ** r for -0.5 <= r <= 0.5, with the least relative error, 2e-9; from r ** 6 down to r.
POLYNOMIAL = np.array(
    [0.00015370704932138324, 0.0013399848248809576, 0.009618373587727547, 0.05550329014658928, 0.24022647738456726,
     0.6931471824645996], np.float32,
)  # fmt: skip
ROUND = np.float32(1.5 * 2**23)
"""Adding it to a small float rounds that to the nearest whole number."""
LEAST_EXPONENT = np.float32(-150)
MASK64 = 2**64 - 1

Floats = NDArray[np.float32]


class PortableDraw:
    """Draws tokens with numpy.

    Args:
        settings: Number of tokens, filters and seed.
    """

    def __init__(self, settings: DrawSettings) -> None:
        self._rate, self._top_k, self._top_p = np.float32(settings.rate), settings.top_k, settings.top_p
        self._min_p, self._penalty = np.float32(settings.min_p), settings.penalty
        self._state = settings.seed
        self._weights = np.zeros(table_shape(settings.n), np.float32)
        self._flat = self._weights.ravel()[: settings.n]

    def __call__(self, logits: Floats, changes: Changes = NO_CHANGES) -> int | None:
        """Return the next token from logits (n,), None if they are not finite numbers or no token is allowed."""
        scores = change(logits, changes, self._penalty)
        best = int(scores.argmax())
        if not np.isfinite(scores[best]):
            return None
        weights = self._flat
        if self._top_k < len(scores):
            ids = most_probable(scores, self._top_k)
            weights[:] = 0
            weights[ids] = exponential(scores[ids], scores[best], self._rate)
        else:
            weights[:] = exponential(scores, scores[best], self._rate)
        sums = self._weights.sum(axis=0)
        mass = self._top_p * total(sums)
        if self._top_p < 1 and mass <= 1:
            return best  # its weight of 1 is enough
        if self._min_p > 0:
            weights[weights < self._min_p] = 0
            sums = self._weights.sum(axis=0)
        token = self._draw(sums)
        # The nucleus holds a token if those that rank before it have less than `mass`; else draw among those.
        while self._top_p < 1:
            weights[:token] *= scores[:token] >= scores[token]
            weights[token:] *= scores[token:] > scores[token]
            sums = self._weights.sum(axis=0)
            if total(sums) < mass:
                break
            token = self._draw(sums)
        return token

    def _draw(self, sums: Floats) -> int:
        column = pick(sums, self._random())
        return pick(self._weights[:, column], self._random()) * len(sums) + column

    def _random(self) -> float:
        """Return the next random number, 0 to 1, by SplitMix64 (Steele et al. 2014)."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & MASK64
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
        return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def change(scores: Floats, changes: Changes, penalty: float) -> Floats:
    """Return the scores after the changes; `penalty` is the repetition penalty."""
    if changes is NO_CHANGES:
        return scores
    scores = scores.copy()
    if penalty != 1:
        factor, values = np.float32(penalty), scores[changes.seen]
        scores[changes.seen] = np.where(values > 0, values / factor, values * factor)
    scores[changes.shifted] += changes.shifts
    if changes.allowed is not None:
        bits = np.unpackbits(changes.allowed.view(np.uint8), count=len(scores), bitorder="little")
        scores[bits == 0] = -np.inf
    return scores


def most_probable(scores: Floats, count: int) -> NDArray[np.intp]:
    """Return the rising indices of the `count` largest scores; of equal ones, the lower indices."""
    surplus = len(scores) - count
    least = np.partition(scores, surplus)[surplus]
    keep = scores > least
    keep[np.flatnonzero(scores == least)[: count - np.count_nonzero(keep)]] = True
    return np.flatnonzero(keep)


def exponential(scores: Floats, best: np.float32, rate: np.float32) -> Floats:
    """Return 2 ** ((scores - best) * rate) in float32, of which every bit is defined; below 2 ** -126 it is 0."""
    with np.errstate(over="ignore"):
        z = (scores - best) * rate
    np.maximum(z, LEAST_EXPONENT, out=z)
    rounded = z + ROUND
    z -= rounded - ROUND
    power: Floats = z * POLYNOMIAL[0]
    for coefficient in POLYNOMIAL[1:]:
        power += coefficient
        power *= z
    power += np.float32(1)
    exponent = rounded.view(np.int32)
    exponent -= ROUND.view(np.int32) - np.int32(127)
    np.maximum(exponent, 0, out=exponent)
    exponent <<= 23
    power *= exponent.view(np.float32)
    return power


def total(sums: Floats) -> float:
    """Return the sum, added one after the other in float64."""
    return float(sums.astype(np.float64).cumsum()[-1])


def pick(weights: Floats, place: float) -> int:
    """Return the index whose part of the sum contains `place`, 0 to 1; never one of weight 0."""
    cumulative = weights.astype(np.float64).cumsum()
    whole = cumulative[-1]
    index = cumulative.searchsorted(place * whole, side="right")
    return int(min(index, cumulative.searchsorted(whole)))  # `place * whole` may have been rounded up to `whole`
