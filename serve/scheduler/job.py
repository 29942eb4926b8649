"""What the endpoints give to the scheduler, and what comes back: the seam between protocols and engines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ...runtime.format.manifest import Manifest
from ...runtime.generation.request import Token
from ...runtime.generation.sampling.mask import Grammar
from ...runtime.generation.sampling.params import Params
from ...runtime.generation.text.tokenizer import Tokenizer
from ..errors import ServeError


@dataclass(frozen=True)
class AutoCompute:
    """Let the server lower the dial while it is busy (`serve/control`)."""

    least: float
    """The lowest `compute` that the client accepts, above 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One text to generate or to embed for a client. A request with `n` texts is n jobs."""

    prompt: tuple[int, ...]
    """Token ids."""
    params: Params
    """Settings of sampling, the dial, and where the text ends."""
    client: str
    """Whom slots are shared out to: the name of the key, else the address."""
    auto: AutoCompute | None = None
    """None: the dial of `params` holds."""
    timeout: float | None = None
    """Seconds from submission to the last token; None takes the server's limit."""
    prompt_logprobs: int | None = None
    """Alternatives to report for each token of the prompt; None reports nothing."""
    grammar: Grammar | None = None
    """What the text must match (`runtime/structured`); None: anything."""
    embeds: bool = False
    """Whether to compute the embedding of the prompt in place of a text; of `params` only the dial counts then."""
    submitted_again: bool = False
    """Whether the caller submits it again where the queue is full, so that this does not count as a rejection."""


@dataclass(frozen=True)
class TokenEvent:
    """One more token of the text."""

    token: Token


@dataclass(frozen=True)
class PromptEvent:
    """The prompt is computed; comes before the first token where `prompt_logprobs` were requested."""

    logprobs: Sequence[float | None]
    """Log-probability of each token of the prompt; None for the first."""
    alternatives: Sequence[Mapping[int, float]]
    """The most probable tokens at each place, by id."""


@dataclass(frozen=True)
class EmbeddingEvent:
    """The embedding of the prompt, where the job `embeds`."""

    vector: NDArray[np.float32]  # (D,)


@dataclass(frozen=True)
class EndEvent:
    """The text has ended; nothing follows."""

    reason: str
    """"eos", "stop", "length", "embedded", "cancelled" or "error"."""
    dial: float | None
    """The `compute` in force at the end; None where thresholds were given or those of training hold."""
    prompt_tokens: int
    cached_tokens: int
    """Tokens of the prompt that were in memory already."""
    drafted: int
    accepted: int
    queue_seconds: float
    """Time that it waited for a slot."""
    prompt_seconds: float
    """Time from the slot to the first token."""
    error: ServeError | None = None
    """Why it ended, with the reason "error"."""


Event = TokenEvent | PromptEvent | EmbeddingEvent | EndEvent


class Stream(Protocol):
    """The events of one job, in order; the last is an `EndEvent`. Leaving `async with` cancels what is not ended."""

    async def take(self) -> list[Event]:
        """Wait for at least one event and return all that there are; none after the end."""

    def __aiter__(self) -> Self:
        """Iterate over the events."""

    async def __anext__(self) -> Event:
        """Wait for the next event."""

    async def __aenter__(self) -> Self:
        """Enter a block at whose end the job is cancelled if it still runs."""

    async def __aexit__(self, *_: object) -> None:
        """Cancel the job if it still runs."""

    def cancel(self) -> None:
        """Free the slot, within one token; may be called again."""


Status = Literal["loading", "ready", "draining", "failed"]
"""What `Scheduler.status` returns."""


@dataclass(frozen=True)
class ModelInfo:
    """A model that can be requested."""

    name: str
    created: int
    """Unix time at which the model was exported."""
    manifest: Manifest
    tokenizer: Tokenizer
    """Used from the event loop and its worker threads."""
    dials: Sequence[float] = field(default_factory=tuple)
    """Points of the dial that have names of their own, such as `demo@0.5`; () where the model is not calibrated."""
    room: int | None = None
    """The most tokens of one text that the memory of the server holds; None while the model is not open."""

    @property
    def context(self) -> int:
        """The most tokens of prompt and text together."""
        return self.manifest.model.context_length


@dataclass(frozen=True)
class Load:
    """How busy a server is."""

    running: int
    """Jobs in a slot."""
    waiting: int
    """Jobs that wait for one."""
    tokens_per_second: float
    """New tokens of all jobs, over the last seconds."""
    dial: float | None = None
    """The `compute` that AutoCompute gives now; None where no model has a dial."""


class Scheduler(Protocol):
    """The models of a server and the jobs on them."""

    async def submit(self, model: str, job: Job) -> Stream:
        """Queue a job.

        Args:
            model: The name of a model, without a dial: endpoints put that of `demo@0.5` into the job.
            job: The job.

        Raises:
            QueueFullError: Too many jobs wait.
            UnavailableError: The server loads or drains, or the job can never fit its memory.
            NotFoundError: There is no such model.
            BadRequestError: The model cannot do what the job asks for.
        """

    def models(self) -> Sequence[ModelInfo]:
        """List the models, the default first."""

    @property
    def status(self) -> Status:
        """Whether jobs are accepted, and if not, why: models load, the server drains, or an engine stopped."""

    def load(self, model: str | None = None) -> Load:
        """Measure how busy the server is, or one of its models; cheap."""
