"""The server's application in this process, on the tiny model, and schedulers that fail or wait on command."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from starlette.testclient import TestClient

from adaptive_lm.serve.application.build import build
from adaptive_lm.serve.errors import ServeError
from adaptive_lm.serve.scheduler.job import EndEvent, Event, Job, Load, ModelInfo, Scheduler, Status, TokenEvent
from adaptive_lm.serve.scheduler.open import model_info, open_scheduler
from adaptive_lm.serve.settings import Settings

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


@contextmanager
def served(
    folder: Path, *, wrap: Callable[[Scheduler], Scheduler] = lambda one: one, keep_alive: float = 10.0, **settings: Any
) -> Iterator[TestClient]:
    """Serve the model in `folder`, and give a client of the application."""
    options = Settings(models=(str(folder),), device="cpu", threads=1, **settings)
    scheduler = open_scheduler(options)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        await scheduler.start()
        await scheduler.ready()
        yield
        await scheduler.close()

    app = build(options, wrap(scheduler), lifespan=lifespan, keep_alive=keep_alive)
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


async def tokens_of(folder: Path, target: str, jobs: Sequence[Job], *, max_batch: int = 8) -> list[list[int]]:
    """Submit all jobs at once to a scheduler of the model in `folder`, and return the tokens of each."""
    options = Settings(models=(str(folder),), device="cpu", target=target, threads=1, max_batch=max_batch)
    scheduler = open_scheduler(options)
    await scheduler.start()
    try:
        await scheduler.ready()
        name = scheduler.models()[0].name
        streams = [await scheduler.submit(name, job) for job in jobs]
        results = []
        for stream in streams:
            sent = [event async for event in stream]
            assert isinstance(sent[-1], EndEvent)
            assert sent[-1].error is None
            results.append([event.token.id for event in sent if isinstance(event, TokenEvent)])
        return results
    finally:
        await scheduler.close()


def events(text: str) -> list[dict[str, Any]]:
    """Read the data of an event stream; the mark `[DONE]` is left out."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


class FailingScheduler:
    """Fails each job after some tokens.

    Args:
        inner: Where the tokens come from.
        error: The failure.
        after: Tokens before it.
    """

    def __init__(self, inner: Scheduler, error: ServeError, after: int) -> None:
        self.inner, self.error, self.after = inner, error, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def submit(self, model: str, job: Job) -> Any:
        """Queue a job that fails."""
        return FailingStream(await self.inner.submit(model, job), self.error, self.after)


class FailingStream:
    """A stream that ends with an error after some tokens."""

    def __init__(self, inner: Any, error: ServeError, after: int) -> None:
        self.inner, self.error, self.left = inner, error, after

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.inner.cancel()

    async def take(self) -> list[Event]:
        """Return the events that are left before the failure, then the failure."""
        taken: list[Event] = []
        while self.left:
            for event in await self.inner.take():
                if isinstance(event, TokenEvent) and self.left:
                    self.left -= 1
                    taken.append(event)
            if taken:
                return taken
        return [EndEvent("error", None, 0, 0, 0, 0, 0.0, 0.0, error=self.error)]


class ScriptedScheduler:
    """Answers each job with given pieces of text, one a token, in place of those of the model.

    Args:
        inner: Where the usage of the tokens comes from.
        pieces: The text of each token.
        reason: Why the text ends.
    """

    def __init__(self, inner: Scheduler, pieces: Sequence[str] = (), reason: str = "eos") -> None:
        self.inner, self.pieces, self.reason = inner, pieces, reason
        self.jobs: list[Job] = []
        """The jobs so far."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def submit(self, model: str, job: Job) -> Any:
        """Queue a job whose text is the script."""
        self.jobs.append(job)
        return ScriptedStream(await self.inner.submit(model, job), list(self.pieces), self.reason)


class ScriptedStream:
    """A stream of given pieces of text."""

    def __init__(self, inner: Any, pieces: list[str], reason: str) -> None:
        self.inner, self.pieces, self.reason = inner, pieces, reason
        self.ended = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.inner.cancel()

    async def take(self) -> list[Event]:
        """Return all pieces, each as a token, and the end."""
        if self.ended:
            return []
        first = None
        while first is None:
            first = next((event for event in await self.inner.take() if isinstance(event, TokenEvent)), None)
        self.ended = True
        tokens: list[Event] = [TokenEvent(replace(first.token, text=piece)) for piece in self.pieces]
        return [*tokens, EndEvent(self.reason, None, 0, 0, 0, 0, 0.0, 0.0)]


class HeldScheduler:
    """Gives streams in which nothing happens, and counts those that are cancelled."""

    def __init__(self, models: Sequence[ModelInfo], status: Status = "ready") -> None:
        self.infos, self.status = models, status
        self.streams: list[HeldStream] = []

    @classmethod
    def of(cls, folder: Path) -> "HeldScheduler":
        """Hold the model in `folder`, without opening it."""
        return cls([model_info(folder)])

    def models(self) -> Sequence[ModelInfo]:
        """List the models."""
        return self.infos

    def load(self, model: str | None = None) -> Load:
        """Count the streams."""
        return Load(running=sum(not one.cancelled for one in self.streams), waiting=0, tokens_per_second=0.0)

    async def submit(self, model: str, job: Job) -> Any:
        """Give a stream."""
        self.streams.append(HeldStream(job))
        return self.streams[-1]


class HeldStream:
    """A stream in which nothing happens until its `events` are filled."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.cancelled = False
        self.events: asyncio.Queue[list[Event]] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancelled = True

    async def take(self) -> list[Event]:
        """Wait for events."""
        return await self.events.get()


class Connection:
    """One HTTP request to an application, driven by hand: the client leaves when `leave` is called."""

    def __init__(self, app: Any, path: str, body: dict[str, Any], headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.sent: list[dict[str, Any]] = []
        self._gone = asyncio.Event()
        self._body: bytes | None = json.dumps(body).encode()
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "client": ("1.2.3.4", 5),
            "server": ("127.0.0.1", 80), "headers": [(b"content-type", b"application/json"), *headers], "state": {},
        }  # fmt: skip
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    @property
    def text(self) -> str:
        """The body that was sent so far."""
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    def leave(self) -> None:
        """Close the connection from the client's side."""
        self._gone.set()


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: It does not hold in time.
    """
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)
