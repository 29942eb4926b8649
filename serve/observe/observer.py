"""What the scheduler reports of its work: the seam to metrics, logs and traces.

The methods here do nothing; `Telemetry` overrides them. None of them raises or waits, so they may be called between
two tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from ...runtime.format.manifest import Manifest
from ...runtime.generation.request import Token

Rejection = Literal["queue_full", "memory", "loading", "draining", "failed", "deadline", "bad_request", "unknown_model"]
"""Why a job is not accepted; "deadline" is that of a job that was accepted and never got a slot."""
REJECTIONS: tuple[Rejection, ...] = get_args(Rejection)


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """How busy a model is, read when the metrics are."""

    running: int
    """Jobs in a slot."""
    waiting: int
    """Jobs that wait for one."""
    slots: int
    """Slots of the batch."""
    kv_bytes: int
    """Bytes of keys, values and states in use."""
    kv_limit: int
    """Bytes of keys, values and states that may be used."""
    dial: float | None = None
    """The `compute` that "auto" gives now; None where the model has no dial."""


class JobObserver:
    """Follows one job. `started`, `token` and `ended` are called by the engine's thread, in this order."""

    def started(self) -> None:
        """Record that the job has a slot; a job that ends in the queue never has one."""

    def token(self, token: Token) -> None:
        """Record one new token, after the pass that gave it."""

    def ended(
        self, reason: str, *, dial: float | None = None, cached_tokens: int = 0, drafted: int = 0, accepted: int = 0
    ) -> None:
        """Record the end of the job; further calls change nothing.

        Args:
            reason: "eos", "stop", "length", "embedded", "cancelled", "deadline" or "error".
            dial: The `compute` in force at the end.
            cached_tokens: Tokens of the prompt that were in memory already.
            drafted: Tokens that were guessed ahead.
            accepted: How many of them were right.
        """


class Observer:
    """Follows the work of a server."""

    def model(self, name: str, manifest: Manifest, state: Callable[[], ModelState]) -> None:
        """Announce a model; only announced models are labels of metrics.

        Args:
            name: Its name, without a dial.
            manifest: Its manifest, for the number of layers and experts.
            state: Called from the event loop when the metrics are read; cheap.
        """

    def job(self, model: str, prompt_tokens: int) -> JobObserver:
        """Begin to follow a job that waits for a slot; call it in the task of the HTTP request."""
        return JobObserver()

    def rejected(self, model: str, reason: Rejection) -> None:
        """Count a job that was not accepted, or whose deadline passed in the queue."""

    def pass_done(self, model: str, *, seconds: float, decoding: int, reading: int) -> None:
        """Record one pass of the engine.

        Args:
            model: The model.
            seconds: Wall time of the pass.
            decoding: Sequences that decoded in it.
            reading: Tokens of prompts that it computed.
        """
