"""The scheduler of one process: several models, each with an engine of its own."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

from ...contract.errors import UserError
from ...runtime.dial import Dial
from ...runtime.dial.dial import wanted_compute
from ...runtime.generation.sampling.params import DEFAULT_NEW_TOKENS
from ..errors import BadRequestError, DeadlineError, NotFoundError, QueueFullError, ServeError, UnavailableError
from ..observe.observer import Rejection
from ..settings import Settings
from .job import AutoCompute, Job, Load, ModelInfo, Status, Stream
from .ticket import Ticket
from .worker import Worker

CLIENT_SHARE = 4
"""A client may have this many jobs in the queue for each place that is free, so that some stay free for others."""
LONGEST_RETRY = 60
"""Most seconds of a `Retry-After`."""
REJECTIONS: Mapping[str, Rejection] = {
    "queue_full": "queue_full", "out_of_memory": "memory", "loading": "loading", "draining": "draining",
    "failed": "failed",
}  # fmt: skip
"""Code of an error -> what the observer is told."""
DIAL_FIELDS = tuple(one.name for one in fields(Dial))


class LocalScheduler:
    """The jobs of many clients on the models of this process; see `Scheduler`.

    All methods are called from one event loop.

    Args:
        workers: One for each model, the default first.
        settings: Those of the server.
    """

    def __init__(self, workers: Sequence[Worker], settings: Settings) -> None:
        self._workers = {worker.info.name: worker for worker in workers}
        self._settings = settings
        self._observer = workers[0].observer
        self._draining = False
        self._changed: asyncio.Event | None = None

    async def start(self) -> None:
        """Begin to open the models, in threads of their own."""
        self._changed = asyncio.Event()
        for worker in self._workers.values():
            worker.observer.model(worker.info.name, worker.info.manifest, worker.state)
            worker.start(asyncio.get_running_loop(), self._notice)

    async def ready(self) -> None:
        """Wait until all models are open.

        Raises:
            UserError: One does not open.
        """
        while self.status == "loading":
            await self._change()
        self._raise_failure()

    async def failure(self) -> BaseException:
        """Wait until an engine stops for good, and return why; what is due then is the end of the process."""
        while (error := self._failure()) is None:
            await self._change()
        return error

    async def drain(self, seconds: float | None = None) -> bool:
        """Accept no more jobs, and wait until all have ended.

        Args:
            seconds: The most time to wait; those that have not ended then are ended with an error. None waits on.

        Returns:
            Whether all ended by themselves; at once False where an engine stops.
        """
        self._draining = True
        try:
            async with asyncio.timeout(seconds):
                while self._failure() is None and any(one.running or one.waiting for one in self._workers.values()):
                    await self._change()
        except TimeoutError:
            self.abort()
            return False
        return self._failure() is None

    def abort(self) -> None:
        """Accept no more jobs, and end all with an error."""
        self._draining = True
        error = UnavailableError("the server stops; send the request again, to another one or a little later")
        for worker in self._workers.values():
            worker.stop_all(error)

    async def close(self) -> None:
        """End what is left, and the threads."""
        self.abort()
        for worker in self._workers.values():
            worker.close()
        for worker in self._workers.values():
            await asyncio.to_thread(worker.join, 10.0)

    def models(self) -> Sequence[ModelInfo]:
        """List the models, the default first."""
        return [
            replace(worker.info, room=worker.opened.room.capacity) if worker.opened else worker.info
            for worker in self._workers.values()
        ]

    @property
    def status(self) -> Status:
        """Whether jobs are accepted, and if not, why: models load, the server drains, or an engine stopped."""
        if self._failure() is not None:
            return "failed"
        if self._draining:
            return "draining"
        return "ready" if all(worker.opened for worker in self._workers.values()) else "loading"

    def load(self, model: str | None = None) -> Load:
        """Measure how busy the server is, or one of its models; cheap."""
        workers = list(self._workers.values()) if model is None else [self._workers[model]]
        return Load(
            running=sum(worker.running for worker in workers),
            waiting=sum(worker.waiting for worker in workers),
            tokens_per_second=sum(worker.tokens_per_second() for worker in workers),
            dial=next((worker.dial for worker in workers if worker.dial is not None), None),
        )

    async def submit(self, model: str, job: Job) -> Stream:
        """Queue a job; see `Scheduler.submit`."""
        worker = self._workers.get(model)
        if worker is None:
            self._observer.rejected(model, "unknown_model")
            names = ", ".join(self._workers)
            raise NotFoundError(
                f"found model {model!r}, this server has {names}; name one of them",
                code="model_not_found",
                param="model",
            )
        try:
            self._require_open(worker)
            self._require_place(worker, job.client)
            ticket = self._ticket(worker, self._with_dial(worker, job))
        except ServeError as error:
            if not (job.submitted_again and isinstance(error, QueueFullError)):
                self._observer.rejected(model, REJECTIONS.get(error.code or "", "bad_request"))
            raise
        seconds = self._settings.timeout if job.timeout is None else min(job.timeout, self._settings.timeout)
        ticket.timer = asyncio.get_running_loop().call_later(seconds, self._expire, worker, ticket, seconds)
        worker.add(ticket)
        return ticket.stream

    def _require_open(self, worker: Worker) -> None:
        if self._draining:
            raise UnavailableError(
                "the server stops; send the request again, to another one or a little later",
                code="draining",
                headers={"Connection": "close", "Retry-After": "5"},
            )
        if self._failure() is not None:
            raise UnavailableError("the engine of this server stopped; it has to be started again", code="failed")
        if worker.opened is None:
            raise UnavailableError(
                f"the model {worker.info.name} is being loaded; try again in a moment",
                code="loading",
                headers={"Retry-After": "1"},
            )

    def _require_place(self, worker: Worker, client: str) -> None:
        """Refuse a job where the queue is full, or where its client has its share of it."""
        if worker.waiting < worker.slots - worker.running:
            return  # a slot is free
        most = self._settings.max_queue
        waiting = sum(one.waiting - min(one.waiting, one.slots - one.running) for one in self._workers.values())
        own = sum(one.waiting_of(client) for one in self._workers.values())
        if waiting < most and own < CLIENT_SHARE * (most - waiting):
            return
        seconds = worker.pace.wait(1)
        after = 1 if seconds is None else min(max(math.ceil(seconds), 1), LONGEST_RETRY)
        who = f"{waiting} requests wait" if waiting >= most else f"{own} requests of this client wait"
        raise QueueFullError(
            f"{who}, as many as the queue takes; try again in {after} s",
            code="queue_full",
            headers={"Retry-After": str(after)},
        )

    def _with_dial(self, worker: Worker, job: Job) -> Job:
        """Check `auto`, and give that of the server to jobs that say nothing about the dial."""
        if job.auto is None:
            says = any(getattr(job.params, name) is not None for name in DIAL_FIELDS)
            least = None if job.embeds else self._settings.auto_compute  # vectors of several dials are not alike
            return job if says or least is None or worker.dial is None else replace(job, auto=AutoCompute(least))
        if worker.dial is None:
            raise BadRequestError(
                f'found compute "auto", but the model {worker.info.name} is not calibrated, so it has no dial; '
                "leave compute out",
                param="compute",
            )
        return job

    def _ticket(self, worker: Worker, job: Job) -> Ticket:
        assert worker.opened is not None
        engine, capacity = worker.opened.engine, worker.opened.loop.batch.capacity
        context, params = worker.info.context, job.params
        new = DEFAULT_NEW_TOKENS if params.max_new_tokens is None else params.max_new_tokens
        room = max(context - len(job.prompt), 1)
        new = min(new, room) if params.max_new_tokens is None else new
        new = 0 if job.embeds else new
        if len(job.prompt) + new > context:
            raise BadRequestError(
                f"found {len(job.prompt)} prompt tokens and {new} new ones, {len(job.prompt) + new} together; the "
                f"context of this model is {context} tokens; shorten the prompt or lower max_tokens",
                code="context_length_exceeded",
                param="max_tokens" if len(job.prompt) < context else "prompt",
            )
        if len(job.prompt) + new > capacity:
            raise UnavailableError(
                f"found {len(job.prompt)} prompt tokens and {new} new ones, the memory of this server holds texts of "
                f"{capacity}; shorten the prompt or lower max_tokens, or start the server with more --kv-memory",
                code="out_of_memory",
            )
        try:
            request = engine.request(
                job.prompt, params, grammar=job.grammar, prompt_logprobs=job.prompt_logprobs, embeds=job.embeds
            )
            curve, dial = worker.info.manifest.curve, None
            if curve is not None and (params.compute, params.target_ms, params.target_loss) != (None, None, None):
                dial = wanted_compute(curve, params)
        except UserError as error:
            raise BadRequestError(str(error)) from error
        return worker.ticket(job, request, dial)

    def _expire(self, worker: Worker, ticket: Ticket, seconds: float) -> None:
        if ticket.stream.ended:
            return
        embeds = ticket.job.embeds
        if ticket.begun is None:
            where = "it waited for a slot all the time"
            self._observer.rejected(worker.info.name, "deadline")
        elif embeds:
            where = "a text was not read to its end"
        else:
            where = f"it had {len(ticket.request.ids) - ticket.request.prompt_tokens} new tokens"
        advice = "send fewer or shorter texts" if embeds else "lower max_tokens, give it more time"
        error = DeadlineError(
            f"this request did not end within its {seconds:g} s: {where}; {advice}, or try again when the server is "
            "less busy",
            code="timeout",
        )
        worker.stop(ticket, "error", error)

    def _notice(self) -> None:
        """Wake those who wait for a change; end the jobs of an engine that stopped."""
        for worker in self._workers.values():
            if worker.error is not None:
                worker.stop_all(ServeError("the engine of this server stopped; send the request again"))
        if self._changed is not None:
            self._changed.set()

    async def _change(self) -> None:
        assert self._changed is not None
        self._changed.clear()
        await self._changed.wait()

    def _failure(self) -> BaseException | None:
        return next((worker.error for worker in self._workers.values() if worker.error is not None), None)

    def _raise_failure(self) -> None:
        error = self._failure()
        if error is not None:
            raise error
