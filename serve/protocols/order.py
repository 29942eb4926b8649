"""A request of any protocol, ready for the scheduler."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...contract.errors import UserError
from ...runtime.chat.tools.parts import ToolParser
from ...runtime.generation.sampling.params import Params
from ..errors import BadRequestError, ServeError
from ..scheduler.job import Job, ModelInfo
from ..settings import Settings
from .grammars import Grammars


@dataclass(frozen=True)
class Caller:
    """Who sent a request, and to which server."""

    client: str
    """Name of the key, else the address."""
    models: Sequence[ModelInfo]
    settings: Settings
    grammars: Grammars


@dataclass(frozen=True, kw_only=True)
class Order:
    """The jobs of one request, and what its answer holds."""

    model: ModelInfo
    name: str
    """The model's name as the client wrote it."""
    jobs: Sequence[Job]
    stream: bool = False
    include_usage: bool = False
    """Whether a stream ends with the usage."""
    details: bool = False
    """Whether the answer has the compute of every token."""
    logprobs: int | None = None
    echo: bool = False
    """Whether a text begins with its prompt."""
    hides_text: bool = False
    """Whether the new tokens are left out, because none were asked for: `max_tokens` 0."""
    new_parser: Callable[[], ToolParser] | None = None
    """Returns what reads the calls of a text; None where no tools may be called."""
    most_calls: int | None = None
    """The most calls that a text holds; None sets no limit."""
    ignored: Sequence[str] = ()
    """Fields of the body without effect."""


def user_error(error: UserError, param: str | None = None) -> ServeError:
    """Return the runtime's refusal of a setting as an error of the server."""
    return BadRequestError(str(error), param=param)


def room_for(prompt: Sequence[int], wanted: int | None, model: ModelInfo, param: str) -> int:
    """Return how many new tokens a text may have: those that the client wants, at most what context and memory leave.

    Raises:
        BadRequestError: The prompt is empty or fills the context, or a number is wrong.
    """
    require_prompt(prompt, model, param)
    context = model.context
    if len(prompt) >= context:
        raise BadRequestError(
            f"found a prompt of {len(prompt)} tokens, this model's context is {context} tokens, one of them for "
            "the answer; shorten the prompt",
            code="context_length_exceeded",
            param=param,
        )
    left = context - len(prompt)
    if model.room is not None and len(prompt) < model.room:
        left = min(left, model.room - len(prompt))
    return left if wanted is None else min(wanted, left)


def require_prompt(prompt: Sequence[int], model: ModelInfo, param: str) -> None:
    """Refuse a prompt that is no text of the model.

    Raises:
        BadRequestError: It is empty, or a number is wrong.
    """
    size = model.manifest.model.tokenizer_size
    if not prompt:
        raise BadRequestError(
            "found an empty prompt, expected at least one token; send a text to continue",
            code="empty_prompt", param=param,
        )  # fmt: skip
    wrong = next((token for token in prompt if not 0 <= token < size), None)
    if wrong is not None:
        raise BadRequestError(
            f"found token {wrong} in the prompt, this model has 0 to {size - 1}; send ids of POST /tokenize",
            param=param,
        )


def checked_params(**settings: object) -> Params:
    """Return the settings of a generation.

    Raises:
        BadRequestError: One is outside its range.
    """
    try:
        return Params(**settings)  # type: ignore[arg-type]
    except UserError as error:
        named = next((name for name in settings if f"found {name} " in str(error)), None)
        raise user_error(error, named) from None
