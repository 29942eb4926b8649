"""The answer to an order: submit its jobs, follow their events, and stop all of it when the client leaves."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...contract.errors import UserError
from ..errors import ServeError
from ..protocols.answer import Answer, json_bytes
from ..protocols.order import Order, user_error
from ..protocols.text import Text
from ..scheduler.job import Scheduler, Stream

KEEP_ALIVE_SECONDS = 10.0
"""A stream without news for this long gets a comment, so that nothing on the way closes it."""
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the tokens
]

log = logging.getLogger("adaptive_lm.serve")


class OrderAnswer(Response):
    """Answers an order, whole or as an event stream.

    The head of a stream is sent with the first event of a text, so that a failure in the queue has its own status; at
    the latest after `keep_alive` seconds.

    Args:
        scheduler: Where the jobs run.
        order: The jobs.
        answer: Writes the answer in the shape of its protocol.
        keep_alive: Seconds without news until a comment is sent.
    """

    def __init__(
        self, scheduler: Scheduler, order: Order, answer: Answer, *, keep_alive: float = KEEP_ALIVE_SECONDS
    ) -> None:
        self.scheduler, self.order, self.answer, self.keep_alive = scheduler, order, answer, keep_alive
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; end the jobs if the client leaves before."""
        await while_connected(scope, receive, self._run(send))

    async def _run(self, send: Send) -> None:
        async with AsyncExitStack() as stack:
            streams = []
            for job in self.order.jobs:
                try:
                    stream = await self.scheduler.submit(self.order.model.name, job)
                except UserError as error:
                    raise user_error(error) from None
                streams.append(await stack.enter_async_context(stream))
            texts = [Text(self.order, index) for index in range(len(streams))]
            if self.order.stream:
                await self._stream(streams, texts, send)
            else:
                await together([follow(stream, text) for stream, text in zip(streams, texts, strict=True)])
                body = json_bytes(self.answer.whole(texts))
                await send_json(send, body, ignored_header(self.order.ignored))

    async def _stream(self, streams: Sequence[Stream], texts: Sequence[Text], send: Send) -> None:
        # The answer numbers its frames, so the first are written before those of the first piece.
        opening = b"".join(self.answer.begin())
        writer = StreamWriter(send, opening, ignored_header(self.order.ignored))

        async def pump(stream: Stream, text: Text) -> None:
            while events := await stream.take():
                pieces = [text.add(event) for event in events]
                await writer.write(b"".join(frame for piece in pieces for frame in self.answer.piece(piece, text)))

        beat = asyncio.create_task(writer.keep_alive(self.keep_alive))
        try:
            await together([pump(stream, text) for stream, text in zip(streams, texts, strict=True)])
            await writer.write(b"".join(self.answer.finish(texts)))
        except Exception as error:
            if not writer.started:
                raise
            if not isinstance(error, ServeError):
                log.exception("an answer failed after its stream began")
            await writer.write(b"".join(self.answer.failed(public(error))))
        finally:
            beat.cancel()
        await writer.close()


class StreamWriter:
    """Sends frames of an event stream.

    Args:
        send: Of the connection.
        opening: The first frames of the answer.
        headers: Further headers.
    """

    def __init__(self, send: Send, opening: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.started = False
        self._send, self._opening, self._headers = send, opening, headers
        self._lock = asyncio.Lock()
        self._sent = False  # since the last beat

    async def write(self, frames: bytes) -> None:
        """Send frames, after the head and the first frames of the answer where they are not sent yet."""
        async with self._lock:
            if not self.started:
                self.started = True
                headers = [*STREAM_HEADERS, *self._headers]
                await self._send({"type": "http.response.start", "status": 200, "headers": headers})
                frames = self._opening + frames
            if frames:
                self._sent = True
                await self._send({"type": "http.response.body", "body": frames, "more_body": True})

    async def keep_alive(self, seconds: float) -> None:
        """Send a comment whenever nothing was sent for `seconds`; ends when it is cancelled."""
        while True:
            await asyncio.sleep(seconds)
            if not self._sent:
                await self.write(b": keep-alive\n\n")
            self._sent = False

    async def close(self) -> None:
        """End the answer."""
        async with self._lock:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})


async def follow(stream: Stream, text: Text) -> None:
    """Add all events of a stream to its text."""
    while events := await stream.take():
        for event in events:
            text.add(event)


async def together(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all of it; where one fails, cancel the others and raise its error."""
    if len(work) == 1:
        await work[0]
        return
    tasks = [asyncio.create_task(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def while_connected(scope: Scope, receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work`, whose request is read already, and cancel it when the client leaves."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        else:
            scope["state"]["disconnected"] = True
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_json(send: Send, body: bytes, headers: Sequence[tuple[bytes, bytes]] = (), status: int = 200) -> None:
    """Send a whole JSON answer."""
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def ignored_header(names: Sequence[str]) -> list[tuple[bytes, bytes]]:
    """Return the header that names the fields of a body without effect; at most ten of them."""
    return [(b"x-ignored-fields", ", ".join(names[:10]).encode())] if names else []


def public(error: Exception) -> ServeError:
    """Return the error that a client may see."""
    if isinstance(error, ServeError):
        return error
    return ServeError("the server failed on this request; try again, and report it with its X-Request-Id")
