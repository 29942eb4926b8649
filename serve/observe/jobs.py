"""What is known of the request in progress and of its jobs: the source of its access line and its spans."""

import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from ...runtime.generation.request import Token
from .guard import guarded
from .metrics import ModelMetrics
from .observer import JobObserver
from .tally import FLUSH_EVERY


@dataclass(eq=False)
class RequestRecord:
    """One HTTP request."""

    began: float
    """Seconds of `time.perf_counter`."""
    first_byte: float | None = None
    """When the body of the answer began, by the same clock."""
    jobs: list["JobRecord"] = field(default_factory=list)


CURRENT: ContextVar[RequestRecord | None] = ContextVar("request_record", default=None)
"""The request of the running task; None outside a request."""


class JobRecord(JobObserver):
    """Times and counts of one job, passed on to the metrics of its model.

    Args:
        model: Its name.
        prompt_tokens: Tokens of its prompt.
        metrics: The metrics of the model; None where it was never announced.
    """

    def __init__(self, model: str, prompt_tokens: int, metrics: ModelMetrics | None) -> None:
        self.model, self.prompt_tokens = model, prompt_tokens
        self.submitted_at = time.perf_counter()
        self.started_at: float | None = None
        self.first_token_at: float | None = None
        self.ended_at: float | None = None
        self.new_tokens = self.cached_tokens = self.drafted = self.accepted = 0
        self.executed_flops = self.dense_flops = 0.0
        self.dial: float | None = None
        self.reason: str | None = None
        """Why it ended; None while it runs."""
        self._last = 0.0
        self._pending: list[Token] = []
        self._metrics = metrics
        self._lock = threading.Lock()

    @guarded
    def started(self) -> None:
        """Record that the job has a slot."""
        self.started_at = time.perf_counter()
        if self._metrics is not None:
            self._metrics.queue_seconds.observe(self.started_at - self.submitted_at)

    @guarded
    def token(self, token: Token) -> None:
        """Record one new token."""
        now = time.perf_counter()
        self.new_tokens += 1
        if self._metrics is not None:
            self._metrics.new_tokens.inc()
            if self.first_token_at is None:
                self._metrics.first_token.observe(now - self.submitted_at)
            else:
                self._metrics.between_tokens.observe(now - self._last)
            self._pending.append(token)
            if len(self._pending) >= FLUSH_EVERY:
                self.flush()
        if self.first_token_at is None:
            self.first_token_at = now
        self._last = now

    def flush(self) -> None:
        """Count the compute of the tokens that were not counted yet."""
        with self._lock:  # the engine's thread, and the one that reads the metrics
            tokens, self._pending = self._pending, []
            if tokens and self._metrics is not None:
                executed, dense = self._metrics.tally.add(tokens)
                self.executed_flops += executed
                self.dense_flops += dense

    @guarded
    def ended(
        self, reason: str, *, dial: float | None = None, cached_tokens: int = 0, drafted: int = 0, accepted: int = 0
    ) -> None:
        """Record the end of the job; further calls change nothing."""
        with self._lock:
            if self.ended_at is not None:
                return
            self.ended_at = time.perf_counter()
        self.dial, self.cached_tokens, self.drafted, self.accepted = dial, cached_tokens, drafted, accepted
        self.flush()
        self.reason = reason
        if self._metrics is not None:
            self._metrics.job_ended(self)

    @property
    def queue_seconds(self) -> float | None:
        """Seconds that it waited for a slot; None where it never had one."""
        return None if self.started_at is None else self.started_at - self.submitted_at

    @property
    def first_token_seconds(self) -> float | None:
        """Seconds from submission to the first token; None without one."""
        return None if self.first_token_at is None else self.first_token_at - self.submitted_at

    @property
    def share(self) -> float | None:
        """Executed over dense FLOPs of the new tokens; None without one."""
        return self.executed_flops / self.dense_flops if self.dense_flops else None
