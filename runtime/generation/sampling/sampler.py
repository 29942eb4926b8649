"""The choice of the next token. V vocabulary."""

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ....contract.errors import WrongUsageError
from ...ops.sampling import NO_CHANGES, Changes, CompiledDraw, DrawSettings, compiled_function
from .draw import PortableDraw, change
from .mask import TokenMask
from .seen import Seen
from .shifts import Shifts

MAX_TEMPERATURE = 1e6
MIN_TEMPERATURE = 1e-30  # a lower one gives the same tokens, and an overflow on the way to them
MIN_PENALTY, MAX_PENALTY = 0.01, 100.0
MAX_TEXT_PENALTY = 2.0
MAX_BIAS = 100.0
MIN_TOP_P = 5e-324  # the smallest number above 0
MAX_SEED = 2**64 - 1

Scores = NDArray[np.float32]  # (V,) logits
Draw = Callable[[Scores, Changes], int | None]
"""Returns a token from logits and their changes; None if the logits are not finite numbers, or nothing is allowed."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the choice.

    The repetition penalty changes the logits first, then the penalties of the text, the biases, the mask of a grammar
    and the temperature. The filters follow in this order, each on the tokens that the one before kept.
    """

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
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token for each time that the generated text holds it, -2 to 2."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of the tokens that the generated text holds, -2 to 2."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of tokens, by id: -100 to 100."""
    seed: int | None = None
    """Seed of the random numbers; None draws one."""

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0, MAX_TEMPERATURE, "0 takes the most probable token")
        if self.top_k is not None:
            check_whole("top_k", self.top_k, 1, None, "leave it out to keep all tokens")
        check_number("top_p", self.top_p, MIN_TOP_P, 1, "1 keeps all tokens")
        check_number("min_p", self.min_p, 0, 1, "0 keeps all tokens")
        check_number("repetition_penalty", self.repetition_penalty, MIN_PENALTY, MAX_PENALTY, "1 changes nothing")
        for name in ("frequency_penalty", "presence_penalty"):
            check_number(name, getattr(self, name), -MAX_TEXT_PENALTY, MAX_TEXT_PENALTY, "0 changes nothing")
        check_biases(self.logit_bias)
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


def biases_of(given: Mapping[str, Any]) -> dict[Any, Any]:
    """Return the biases of a field of JSON, whose keys are texts; a key that is no token id stays one."""
    return {int(key) if key.isascii() and key.isdigit() and len(key) < 10 else key: given[key] for key in given}


def check_biases(biases: Any) -> None:
    """Raise WrongUsageError unless `biases` has token ids with numbers from -100 to 100."""
    if not isinstance(biases, Mapping):
        raise WrongUsageError(f"found logit_bias {biases!r}, expected numbers by token id, such as {{50: -100}}")
    for token, bias in biases.items():
        if not isinstance(token, numbers.Integral) or token < 0:
            raise WrongUsageError(f"found {token!r:.24} in logit_bias, expected a token id, a whole number from 0")
        check_number(f"logit_bias[{token}]", bias, -MAX_BIAS, MAX_BIAS, "0 changes nothing")


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
        mask: Says before each choice which tokens are allowed; None allows all.
        compiled: Whether to use the compiled draw where there is one; the other gives the same tokens.
    """

    def __init__(
        self,
        sampling: Sampling,
        vocab_size: int,
        prompt: list[int],
        *,
        mask: TokenMask | None = None,
        compiled: bool = True,
    ) -> None:
        self.sampling = sampling
        self.seed = sampling.seed if sampling.seed is not None else int(np.random.SeedSequence().generate_state(1)[0])
        self._vocab_size = vocab_size
        repeats, shifts = sampling.repetition_penalty != 1, Shifts.needed(sampling)
        self._seen = Seen(vocab_size, prompt) if repeats else None
        self._shifts = Shifts(sampling, vocab_size) if shifts else None
        self._mask = mask
        self._changes = repeats or shifts or mask is not None
        self._draw = find_draw(sampling, vocab_size, self.seed, compiled=compiled)

    @property
    def compiled(self) -> bool:
        """Whether the compiled draw is in use."""
        return isinstance(self._draw, CompiledDraw)

    def choose(self, logits: Scores) -> int:
        """Return the next token from logits (V,).

        Raises:
            ArithmeticError: The logits are not finite numbers, or the mask allows no token.
        """
        changes = self._next_changes() if self._changes else NO_CHANGES
        token = self._draw(logits[: self._vocab_size], changes)
        if token is None:
            if changes.allowed is not None and not changes.allowed.any():
                raise ArithmeticError("the grammar allows no token of this model's vocabulary")
            raise ArithmeticError("the model gave logits that are not finite numbers")
        if self._changes:
            self._note(token)
        return token

    def _next_changes(self) -> Changes:
        return Changes(
            NO_CHANGES.seen if self._seen is None else self._seen.ids,
            *((NO_CHANGES.shifted, NO_CHANGES.shifts) if self._shifts is None else self._shifts.arrays),
            None if self._mask is None else self._mask.allowed(),
        )

    def _note(self, token: int) -> None:
        if self._seen is not None:
            self._seen.add(token)
        if self._shifts is not None:
            self._shifts.add(token)
        if self._mask is not None:
            self._mask.accept(token)


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


def take_best(logits: Scores, changes: Changes, *, penalty: float) -> int | None:
    """Return the most probable token, None if the logits are not finite numbers or no token is allowed."""
    scores = change(logits, changes, penalty)
    best = int(scores.argmax())
    return best if math.isfinite(scores[best]) else None
