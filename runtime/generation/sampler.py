"""The choice of the next token. V vocabulary."""

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...contract.errors import WrongUsageError
from ..ops.sampling import CompiledDraw, DrawSettings, compiled_function
from .draw import PortableDraw, penalise

MAX_TEMPERATURE = 1e6
MIN_TEMPERATURE = 1e-30  # a lower one gives the same tokens, and an overflow on the way to them
MIN_PENALTY, MAX_PENALTY = 0.01, 100.0
MIN_TOP_P = 5e-324  # the smallest number above 0
MAX_SEED = 2**64 - 1

Scores = NDArray[np.float32]  # (V,) logits
Draw = Callable[[Scores, NDArray[np.int32]], int | None]
"""Returns a token from logits and the ids seen; None if the logits are not finite numbers."""


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
    """Samples one sequence; the same seed and logits give the same tokens, on every machine.

    Every filter keeps the tokens that rank before some place, by falling logit, then by rising id. So a draw needs no
    sorting: draw from all tokens; if a filter has removed that one, draw from those that rank before it, and so on. No
    token that the filters keep is ever left out, so each has its exact share.

    Weights are float32: the probability of a token that has the share w of the best one's is exact to a factor of
    1 +- (1e-5 + 2e-7 log2(1 / w)), the whole distribution to 1e-7 in total variation, as measured; a share below
    2 ** -126 counts as 0. Just as exact is the mass at which `top_p` ends.

    Args:
        sampling: Settings of the choice.
        vocab_size: The number of ids that exist; logits beyond are padding of the embedding and never chosen.
        prompt: The ids that count as seen from the start.
        compiled: Whether to use the compiled draw where there is one; the other gives the same tokens.
    """

    def __init__(self, sampling: Sampling, vocab_size: int, prompt: list[int], *, compiled: bool = True) -> None:
        self.sampling = sampling
        self.seed = sampling.seed if sampling.seed is not None else int(np.random.SeedSequence().generate_state(1)[0])
        self._vocab_size = vocab_size
        self._seen = Seen(vocab_size, prompt if sampling.repetition_penalty != 1 else [])
        self._draw = find_draw(sampling, vocab_size, self.seed, compiled=compiled)

    @property
    def compiled(self) -> bool:
        """Whether the compiled draw is in use."""
        return isinstance(self._draw, CompiledDraw)

    def choose(self, logits: Scores) -> int:
        """Return the next token from logits (V,).

        Raises:
            ArithmeticError: The logits are not finite numbers.
        """
        token = self._draw(logits[: self._vocab_size], self._seen.ids)
        if token is None:
            raise ArithmeticError("the model gave logits that are not finite numbers")
        if self.sampling.repetition_penalty != 1:
            self._seen.add(token)
        return token


class Seen:
    """The tokens of a text, each once."""

    def __init__(self, vocab_size: int, prompt: list[int]) -> None:
        self._is_seen = np.zeros(vocab_size, dtype=bool)
        self._is_seen[prompt] = True
        first = np.flatnonzero(self._is_seen)
        self._ids = np.zeros(max(vocab_size, 1), np.int32)
        self._ids[: len(first)] = first
        self._count = len(first)

    @property
    def ids(self) -> NDArray[np.int32]:
        """The ids, in any order; a view that the next `add` leaves as it is."""
        return self._ids[: self._count]

    def add(self, token: int) -> None:
        """Add a token, if it is new."""
        if not self._is_seen[token]:
            self._is_seen[token] = True
            self._ids[self._count] = token
            self._count += 1


def find_draw(sampling: Sampling, vocab_size: int, seed: int, *, compiled: bool) -> Draw:
    """Return the fastest function that draws a token with these settings."""
    if sampling.temperature == 0:
        return partial(take_best, penalty=sampling.repetition_penalty)
    settings = DrawSettings(
        n=vocab_size,
        rate=math.log2(math.e) / max(sampling.temperature, MIN_TEMPERATURE),
        top_k=vocab_size if sampling.top_k is None else min(sampling.top_k, vocab_size),
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        penalty=sampling.repetition_penalty,
        seed=seed,
    )
    function = compiled_function() if compiled else None
    return PortableDraw(settings) if function is None else CompiledDraw(function, settings)


def take_best(logits: Scores, seen: NDArray[np.int32], *, penalty: float) -> int | None:
    """Return the most probable token, None if the logits are not finite numbers."""
    scores = penalise(logits, seen, penalty)
    best = int(scores.argmax())
    return best if math.isfinite(scores[best]) else None
