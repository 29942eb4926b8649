"""The engine of one model: the thread that runs it, and the jobs on it."""

import threading
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ...contract.errors import UserError
from ...runtime.execution.memory.budget import states_of_slot
from ...runtime.generation.engine import Engine
from ...runtime.generation.loop import Event as PassEvent
from ...runtime.generation.loop import Loop
from ...runtime.generation.request import Request
from ..control.controller import Controller
from ..control.pace import Pace
from ..errors import DeadlineError, ServeError
from ..observe.observer import ModelState, Observer
from .auto_dial import AutoDial
from .failures import LOG, client_error
from .fair_queue import FairQueue
from .job import EmbeddingEvent, Event, Job, ModelInfo, PromptEvent, TokenEvent
from .memory import Room
from .stream import JobStream
from .ticket import Ticket


@dataclass(frozen=True)
class Opened:
    """A model that is ready to compute."""

    engine: Engine
    loop: Loop
    room: Room


class Worker:
    """The engine of one model. Its thread opens the model, then runs pass after pass while there are jobs.

    Methods are called from the event loop, except those marked as the thread's.

    Args:
        info: The model.
        open_model: Opens it; called in the thread.
        controller: Sets the dial of jobs that let the server choose; None where the model is not calibrated.
        max_queue: Jobs that may wait, all models together.
        observer: Hears of jobs and passes.
        clock: Seconds.
    """

    def __init__(
        self,
        info: ModelInfo,
        open_model: Callable[[], Opened],
        controller: Controller | None = None,
        max_queue: int = 64,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.info = info
        self.pace = Pace()
        self.error: BaseException | None = None
        """Why its thread ended."""
        self.observer = observer or Observer()
        self._open_model, self._max_queue, self._clock = open_model, max_queue, clock
        self._opened: Opened | None = None
        self._queue: FairQueue[Ticket] = FairQueue()
        self._running: dict[Request, Ticket] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._auto = None if controller is None else AutoDial(controller, info.manifest, self.pace)
        self._thread = threading.Thread(target=self._run, name=f"engine {info.name}", daemon=True)

    def start(self, events: AbstractEventLoop, on_change: Callable[[], None]) -> None:
        """Start the thread.

        Args:
            events: The event loop of the streams.
            on_change: Called in it when the model is ready, when a job has ended, and when the thread ended.
        """
        self._events, self._on_change = events, on_change
        self._thread.start()

    @property
    def opened(self) -> Opened | None:
        """The model; None while it is opened."""
        return self._opened

    @property
    def slots(self) -> int:
        """Jobs that it computes at a time; 0 while it is opened."""
        return 0 if self._opened is None else self._opened.loop.batch.slots

    @property
    def running(self) -> int:
        """Jobs that have a slot."""
        return 0 if self._opened is None else self._opened.loop.batch.slots - self._opened.loop.free

    @property
    def waiting(self) -> int:
        """Jobs that wait for a slot."""
        return len(self._queue)

    @property
    def dial(self) -> float | None:
        """The `compute` of jobs that let the server choose; None where the model is not calibrated."""
        return None if self._auto is None else self._auto.compute

    def state(self) -> ModelState:
        """Return how busy the model is, for metrics."""
        opened = self._opened
        used = limit = 0
        if opened is not None:
            room, sequences = opened.room, opened.loop.batch.sequences
            limit, states = room.bytes, states_of_slot(self.info.manifest.model)
            cells = limit - room.slots * states  # bytes that grow with the tokens
            tokens = sum(len(sequence.ids) for sequence in sequences)
            used = cells * tokens // (room.slots * room.capacity) + len(sequences) * states
        return ModelState(
            running=self.running, waiting=self.waiting, slots=self.slots, kv_bytes=used, kv_limit=limit, dial=self.dial
        )

    def tokens_per_second(self) -> float:
        """Return the new tokens of all jobs over the last seconds."""
        return self.pace.tokens_per_second(self._clock())

    def waiting_of(self, client: str) -> int:
        """Return how many jobs of `client` wait."""
        return self._queue.of(client)

    def wait(self, before: int = 0) -> float | None:
        """Predict in how many seconds a job that comes now gets a slot, with `before` more before it."""
        return self.pace.wait(self.waiting + before + 1 - (self.slots - self.running))

    def ticket(self, job: Job, request: Request, dial: float | None) -> Ticket:
        """Make the ticket of a job."""
        expected = min(request.max_new_tokens, round(self.pace.mean_length or request.max_new_tokens))
        ticket: Ticket
        stream = JobStream(lambda: self.stop(ticket, "cancelled"), lambda: self._ended(ticket))
        watch = self.observer.job(self.info.name, request.prompt_tokens)
        ticket = Ticket(job, request, stream, watch, self._clock(), dial, max(expected, 1))
        return ticket

    def add(self, ticket: Ticket) -> None:
        """Let a job wait for a slot."""
        seconds = self.pace.seconds_of(ticket.request.max_new_tokens + ticket.work - ticket.expected)
        with self._changed:
            self._queue.add(ticket, ticket.job.client, now=ticket.submitted, work=ticket.work, seconds=seconds)
            self._changed.notify()

    def stop(self, ticket: Ticket, reason: str, error: ServeError | None = None) -> None:
        """End a job now, wherever it is; its slot is free before the next pass."""
        with self._changed:
            if not self._queue.remove(ticket, ticket.job.client) and self._opened is not None:
                self._opened.loop.cancel(ticket.request)
            self._changed.notify()
        ticket.stream.push([ticket.end(self._clock(), reason, error)])
        ticket.watch_end("deadline" if isinstance(error, DeadlineError) else reason)

    def stop_all(self, error: ServeError) -> None:
        """End all jobs with an error."""
        with self._changed:
            tickets = [*self._queue, *self._running.values()]
        for ticket in tickets:
            if not ticket.stream.ended:
                self.stop(ticket, "error", error)

    def close(self) -> None:
        """Let the thread end after the pass that it is in."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def join(self, seconds: float) -> bool:
        """Wait for the end of the thread; return whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _ended(self, ticket: Ticket) -> None:
        if ticket.timer is not None:
            ticket.timer.cancel()
        self._events.call_soon(self._on_change)  # not at once: it may end further jobs, each of which comes here

    # The thread.

    def _run(self) -> None:
        try:
            self._opened = self._open_model()
            self._call(self._on_change)
            self._serve(self._opened.loop)
        except BaseException as error:
            self.error = error
            if not isinstance(error, UserError):
                LOG.critical("the engine of %s stopped", self.info.name, exc_info=error)
            self._call(self._on_change)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        try:
            self._events.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the event loop is closed, so no stream reads events
            LOG.debug("an event came after the end of the server")

    def _serve(self, loop: Loop) -> None:
        while True:
            with self._changed:
                loop.drop_cancelled()
                self._forget_ended()
                while not (self._queue or loop.busy or self._closing):
                    self._look(self._clock())
                    self._changed.wait()
                    self._forget_ended()
                if self._closing:
                    return
                self._begin_jobs(loop)
            self._step(loop)

    def _step(self, loop: Loop) -> None:
        """Compute a pass, send what it gave, and measure it."""
        decoding = sum(1 for request in self._running if request.new_tokens)
        begin = self._clock()
        events = loop.step()
        now = self._clock()
        self._deliver(events, now)
        reading = 0
        if decoding < len(self._running):
            reading = sum(ticket.read() for ticket in self._running.values())
        share = len(self._running) / loop.batch.slots
        new_tokens = sum(event.token is not None for event in events)
        self.pace.passed(now, now - begin, new_tokens, decoding=decoding, occupancy=share)
        self.observer.pass_done(self.info.name, seconds=now - begin, decoding=decoding, reading=reading)
        if self._auto is not None and self._auto.due(now):
            self._look(now)

    def _begin_jobs(self, loop: Loop) -> None:
        """Give the free slots to the jobs that are next."""
        for _ in range(min(loop.free, len(self._queue))):
            ticket = self._queue.take()
            assert ticket is not None
            ticket.begun = self._clock()
            ticket.watch.started()
            if self._auto is not None:
                self._auto.set(ticket)
            self._running[ticket.request] = ticket
            loop.submit(ticket.request)

    def _deliver(self, events: list[PassEvent], now: float) -> None:
        """Send what a pass gave to the event loop, in one call."""
        parcels: dict[Ticket, list[Event]] = {}
        for event in events:
            request, token = event.request, event.token
            ticket = self._running[request]
            parcel = parcels.setdefault(ticket, [])
            if ticket.first_token is None:
                ticket.first_token = now
                if token is not None and ticket.job.prompt_logprobs is not None:
                    scores = request.prompt_scores
                    parcel.append(PromptEvent([one.logprob for one in scores], [one.top_logprobs for one in scores]))
            if token is not None:
                parcel.append(TokenEvent(token))
                ticket.watch.token(token)
            elif request.finish_reason == "embedded":
                parcel.append(EmbeddingEvent(request.embedding))
        for ticket, parcel in parcels.items():
            request = ticket.request
            if request.status == "ended":
                error = None if request.error is None else client_error(request.error)
                parcel.append(ticket.end(now, request.finish_reason or "error", error))
                ticket.watch_end(request.finish_reason or "error")
        if parcels:
            self._call(_push, [(ticket.stream, parcel) for ticket, parcel in parcels.items()])

    def _forget_ended(self) -> None:
        for request in [one for one in self._running if one.status == "ended"]:
            ticket = self._running.pop(request)
            self._queue.done(ticket.job.client, correction=request.new_tokens - ticket.expected)
            if request.finish_reason == "cancelled":
                self._call(self._on_change)  # its stream ended before its slot was free
            elif request.finish_reason not in ("embedded", "error"):
                self.pace.ended(request.new_tokens)

    def _look(self, now: float) -> None:
        """Let the dial follow the load."""
        if self._auto is not None:
            fill = self.waiting / self._max_queue if self._max_queue else 0.0
            self._auto.look(now, self._running.values(), wait=self.wait(), fill=fill)


def _push(parcels: Iterable[tuple[JobStream, list[Event]]]) -> None:
    for stream, parcel in parcels:
        stream.push(parcel)
