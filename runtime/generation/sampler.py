"""The choice of the next token: small functions that compose, each from its paper. V vocabulary."""

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...contract.errors import WrongUsageError

FIRST_CANDIDATES = 256  # of top-p; four times as many until they hold the mass
MAX_TEMPERATURE = 1e6
MIN_TEMPERATURE = 1e-30  # a lower one gives the same tokens, and an overflow on the way to them
MIN_PENALTY, MAX_PENALTY = 0.01, 100.0
MIN_TOP_P = 5e-324  # the smallest number above 0
MAX_SEED = 2**64 - 1

Indices = NDArray[np.intp]
Mass = NDArray[np.float64]  # (V,) in proportion to the probability, 1 at the most probable token
Scores = NDArray[np.float32]  # (V,) logits


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the choice; the filters act in this order, each on the tokens that the one before kept."""

    temperature: float = 0.8
    """Divides the logits, 0 to 1,000,000; 0 takes the most probable token."""
    top_k: int | None = None
    """Keep the k most probable tokens, at least 1; None keeps all."""
    top_p: float = 1.0
    """Keep the fewest most probable tokens that hold this mass, above 0, at most 1.

    Source: Holtzman et al. 2019 (arXiv 1904.09751).
    """
    min_p: float = 0.0
    """Drop tokens below this share of the highest probability, 0 to 1.

    Source: Nguyen et al. 2024 (arXiv 2407.01082).
    """
    repetition_penalty: float = 1.0
    """Logits of tokens already seen are divided (if above 0) or multiplied by it, 0.01 to 100; 1 changes nothing.

    Source: Keskar et al. 2019 (arXiv 1909.05858), section 4.1.
    """
    seed: int | None = None
    """Seed of the random numbers; None draws one."""

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0, MAX_TEMPERATURE, "0 takes the most probable token")
        if self.top_k is not None:
            check_whole("top_k", self.top_k, 1, None, "leave it out to keep all tokens")
        check_number("top_p", self.top_p, MIN_TOP_P, 1, "1 keeps all tokens")
        check_number("min_p", self.min_p, 0, 1, "0 keeps all tokens")
        check_number("repetition_penalty", self.repetition_penalty, MIN_PENALTY, MAX_PENALTY, "1 changes nothing")
        if self.seed is not None:
            check_whole("seed", self.seed, 0, MAX_SEED, "leave it out to draw one")


def check_number(name: str, value: Any, low: float, high: float, hint: str) -> None:
    """Raise WrongUsageError unless `value` is a number from `low` to `high`."""
    is_number = isinstance(value, numbers.Real)
    if not (is_number and low <= value <= high):
        span = "above 0, up to" if low == MIN_TOP_P else f"from {low:g} to"
        raise WrongUsageError(f"found {name} {value}, expected a number {span} {high:,.9g}; {hint}")


def check_whole(name: str, value: Any, low: int, high: int | None, hint: str) -> None:
    """Raise WrongUsageError unless `value` is a whole number from `low` to `high`; None for `high` sets no limit."""
    is_whole = isinstance(value, numbers.Integral)
    if not (is_whole and low <= value and (high is None or value <= high)):
        span = f"at least {low}" if high is None else f"from {low} to {high}"
        raise WrongUsageError(f"found {name} {value}, expected a whole number, {span}; {hint}")


class TokenChooser(Protocol):
    """The interface that chooses each token of a generation."""

    seed: int

    def choose(self, logits: Scores) -> int:
        """Return the next token from logits (V,)."""


class Sampler:
    """Samples one sequence; the same seed and logits give the same tokens.

    Args:
        sampling: Settings of the choice.
        vocab_size: The number of ids that exist; logits beyond are padding of the embedding and never chosen.
        prompt: The ids that count as seen from the start.
    """

    def __init__(self, sampling: Sampling, vocab_size: int, prompt: list[int]) -> None:
        self.sampling = sampling
        self.seed = sampling.seed if sampling.seed is not None else int(np.random.SeedSequence().generate_state(1)[0])
        self._random = np.random.default_rng(self.seed)
        self._filters = filters(sampling)
        self._seen = np.zeros(vocab_size, dtype=bool)
        self._seen[prompt] = True

    def choose(self, logits: Scores) -> int:
        """Return the next token from logits (V,).

        Raises:
            ArithmeticError: The logits are not finite numbers.
        """
        scores = penalise(logits[: len(self._seen)], self._seen, self.sampling.repetition_penalty)
        best = int(scores.argmax())
        if not math.isfinite(scores[best]):
            raise ArithmeticError("the model gave logits that are not finite numbers")
        token = best
        if self.sampling.temperature > 0:
            mass = exponential(scores, float(scores[best]), self.sampling.temperature)
            token = draw(mass, self._filters, self._random.random())
        self._seen[token] = True
        return token


def penalise(scores: Scores, seen: NDArray[np.bool_], penalty: float) -> Scores:
    """Lower the scores of the tokens that were seen; a penalty below 1 raises them."""
    if penalty == 1:
        return scores
    factor = np.float32(penalty)
    return np.where(seen, np.where(scores > 0, scores / factor, scores * factor), scores)


def exponential(scores: Scores, best: float, temperature: float) -> Mass:
    """Return the softmax of the scores without its divisor: in float64 and from the best down, so nothing overflows."""
    return np.exp((scores.astype(np.float64) - best) / max(temperature, MIN_TEMPERATURE))


def filters(sampling: Sampling) -> list[Callable[[Mass], Indices]]:
    """Return the filters in use, in their order; each returns the rising indices that it keeps."""
    chain: list[Callable[[Mass], Indices]] = []
    if sampling.top_k is not None:
        chain.append(partial(most_probable, count=sampling.top_k))
    if sampling.top_p < 1:
        chain.append(partial(nucleus, top_p=sampling.top_p))
    if sampling.min_p > 0:
        chain.append(partial(probable, min_p=sampling.min_p))
    return chain


def most_probable(mass: Mass, count: int) -> Indices:
    """Keep the `count` largest entries."""
    if count >= len(mass):
        return np.arange(len(mass))
    return np.sort(np.argpartition(mass, -count)[-count:])


def nucleus(mass: Mass, top_p: float) -> Indices:
    """Keep the fewest largest entries that hold `top_p` of the sum; at least one.

    Sorts only as many as it needs: a vocabulary of 32000 has a few hundred candidates.
    """
    wanted = top_p * mass.sum()
    count = min(FIRST_CANDIDATES, len(mass))
    while True:
        largest = np.argpartition(mass, -count)[-count:] if count < len(mass) else np.arange(len(mass))
        largest = largest[np.argsort(-mass[largest], kind="stable")]
        cumulative = mass[largest].cumsum()
        if cumulative[-1] >= wanted or count == len(mass):
            return np.sort(largest[: int(cumulative.searchsorted(wanted)) + 1])
        count = min(4 * count, len(mass))


def probable(mass: Mass, min_p: float) -> Indices:
    """Keep the entries of at least `min_p` of the largest."""
    return np.flatnonzero(mass >= min_p * mass.max())


def draw(mass: Mass, chain: list[Callable[[Mass], Indices]], place: float) -> int:
    """Return the index at `place`, 0 to 1, of the mass that the filters of `chain` leave."""
    ids: Indices | None = None  # of what is left; None is all
    for keep in chain:
        indices = keep(mass)
        ids, mass = (indices if ids is None else ids[indices]), mass[indices]
    cumulative = mass.cumsum()
    index = min(int(cumulative.searchsorted(place * cumulative[-1], side="right")), len(mass) - 1)
    return index if ids is None else int(ids[index])
