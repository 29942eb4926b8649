"""All that can be set for one generation."""

from dataclasses import dataclass
from typing import Any

from ....contract.errors import UserError, WrongUsageError
from ...dial.dial import Dial
from ...format.manifest import Generation
from ...speculation.speculation import Speculate, checked_speculate
from ..text.stop import checked_stops
from .logprobs import MAX_LOGPROBS
from .sampler import Sampling, check_whole

DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class Params(Sampling, Dial):
    """All that can be set for one generation; see `Sampling` and `Dial` for their part."""

    max_new_tokens: int | None = None
    """The most tokens to generate; None takes 128, or fewer where the context ends."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""
    logprobs: int | None = None
    """How many alternatives to report with the log-probability of each token, 0 to 20; None reports neither."""
    show_special: bool | tuple[int, ...] = False
    """The special tokens that the text shows as they are spelled: all but those that end it, none, or some by id."""
    speculate: Speculate | None = None
    """How to guess tokens ahead, so that one pass checks several; the text does not depend on it. "ngram" guesses what
    followed the end of the text before, "dial" guesses with the model at a lower setting of its dial, "off" does not
    guess. None takes "ngram" on the target cpu, else "off"."""

    def __post_init__(self) -> None:
        Sampling.__post_init__(self)
        Dial.__post_init__(self)
        if self.max_new_tokens is not None:
            check_whole("max_new_tokens", self.max_new_tokens, 1, None, "leave it out for as many as there is room for")
        checked_stops(self.stop)
        check_logprobs("logprobs", self.logprobs)
        check_special(self.show_special)
        checked_speculate(self.speculate)


def check_special(show: Any) -> None:
    """Raise WrongUsageError unless `show` names special tokens: all, none, or some by id."""
    if not isinstance(show, bool) and not (
        isinstance(show, tuple | list) and all(type(token) is int for token in show)
    ):
        raise WrongUsageError(f"found show_special {show!r}, expected true, false or token ids; leave it out for none")


def params_of(generation: Generation, **given: Any) -> Params:
    """Return the settings that are `given`, and for the rest of the sampling the defaults of a model.

    Raises:
        WrongUsageError: A setting is outside its range.
    """
    return Params(**{**generation.sampling, **given})


def check_logprobs(name: str, alternatives: int | None) -> None:
    """Raise WrongUsageError unless that number of alternatives can be reported."""
    if alternatives is not None:
        check_whole(name, alternatives, 0, MAX_LOGPROBS, "leave it out for no log-probabilities")


def new_tokens_of(params: Params, prompt: int, context: int) -> int:
    """Return how many new tokens to generate at most after `prompt` tokens.

    Raises:
        UserError: The prompt is empty, or prompt and new tokens exceed the context.
    """
    if prompt == 0:
        raise UserError("the prompt is empty, expected at least one token; type a text to continue")
    wanted = params.max_new_tokens
    new = wanted if wanted is not None else min(DEFAULT_NEW_TOKENS, max(context - prompt, 1))
    if prompt + new > context:
        raise UserError(
            f"found {prompt} prompt tokens and {new} new ones, {prompt + new} together; "
            f"this model's context is {context} tokens; shorten the prompt or lower --max-new-tokens"
        )
    return new
