"""`POST /v1/completions`: the body."""

from typing import Annotated

from pydantic import Field, model_validator

from ..body import NoTools
from .sampling import SamplingFields

MAX_PROMPTS = 128
DEFAULT_NEW_TOKENS = 16
"""As OpenAI's."""

Ids = Annotated[list[int], Field(min_length=1)]


class CompletionBody(SamplingFields):
    """The body of `POST /v1/completions`."""

    prompt: (
        str
        | Ids
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    """A text, ids of tokens, or a list of either."""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """The most new tokens, 16 if left out; more than the context leaves is as much as it leaves; 0 needs `echo`."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Report the log-probability of each token, and this many alternatives."""
    echo: bool | None = None
    """Whether the answer begins with the prompt, with its log-probabilities if `logprobs` is given."""
    best_of: int | None = None
    """Only the value of `n`."""
    tools: NoTools = None
    """Refused: tools need a conversation."""
    suffix: str | None = None
    """Refused: the models do not fill in."""

    @model_validator(mode="after")
    def _possible(self) -> "CompletionBody":
        if self.suffix:
            raise ValueError("found suffix, this server's models continue a text and cannot fill in; leave it out")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError(f"found best_of {self.best_of}, expected the value of n, {self.n or 1}; leave it out")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("found max_tokens 0 without echo, which asks for nothing; give at least 1")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, one or more."""
        value = self.prompt
        if isinstance(value, str):
            return [value]
        if isinstance(value[0], int):
            return [value]
        return value
