"""The endpoint that embeds texts: `POST /v1/embeddings`."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...contract.errors import UserError
from ..errors import DeadlineError, QueueFullError, ServeError, UnavailableError
from ..protocols.answer import json_bytes
from ..protocols.openai.embeddings import EmbeddingBody, EmbeddingOrder, embedding_list
from ..protocols.order import user_error
from ..protocols.prepare import prepare_embeddings
from ..scheduler.job import EmbeddingEvent, EndEvent, Job, Scheduler, Stream
from .requests import caller_of, read_body, scheduler_of, settings_of
from .stream import ignored_header, send_json, together, while_connected

AT_A_TIME = 4
"""Texts of one request that are in the scheduler at a time, so that a long list leaves slots and queue to others."""
RETRY_SECONDS = 0.05
"""Time until a text is submitted again that found the queue full."""


async def embeddings(request: Request) -> Response:
    """Return a vector for each text."""
    body = await read_body(request, EmbeddingBody)
    order = await asyncio.to_thread(prepare_embeddings, body, caller_of(request))
    request.scope["state"]["model"] = order.model.name
    return EmbeddingAnswer(scheduler_of(request), order, settings_of(request).timeout)


class EmbeddingAnswer(Response):
    """Computes the vectors of an order, a few texts at a time, and answers; stops when the client leaves.

    Args:
        scheduler: Where the jobs run.
        order: The jobs.
        seconds: Time for all of it.
    """

    def __init__(self, scheduler: Scheduler, order: EmbeddingOrder, seconds: float) -> None:
        self.scheduler, self.order, self.seconds = scheduler, order, seconds
        self.background = None
        self._vectors: list[NDArray[np.float32] | None] = [None] * len(order.jobs)
        self._accepted = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; end the jobs if the client leaves before."""
        await while_connected(scope, receive, self._run(send))

    async def _run(self, send: Send) -> None:
        jobs = iter(list(enumerate(self.order.jobs)))  # one iterator: each lane takes the next text that is left
        deadline = asyncio.get_running_loop().time() + self.seconds
        await together([self._lane(jobs, deadline) for _ in range(min(AT_A_TIME, len(self.order.jobs)))])
        vectors = [one for one in self._vectors if one is not None]
        body = await asyncio.to_thread(written, self.order, vectors)
        await send_json(send, body, ignored_header(self.order.ignored))

    async def _lane(self, jobs: Iterator[tuple[int, Job]], deadline: float) -> None:
        for index, job in jobs:
            async with await self._submit(job, deadline) as stream:
                self._vectors[index] = await vector_of(stream)

    async def _submit(self, job: Job, deadline: float) -> Stream:
        """Queue a text. The first of a request is refused if the queue is full; a later one waits for its place.

        Raises:
            DeadlineError: No place came in time.
        """
        while True:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                done = sum(one is not None for one in self._vectors)
                raise DeadlineError(
                    f"this request did not end within its {self.seconds:g} s: {done} of {len(self._vectors)} texts "
                    "were embedded; send fewer at a time, or try again when the server is less busy",
                    code="timeout",
                )
            try:
                submitted = replace(job, timeout=left, submitted_again=self._accepted)
                stream = await self.scheduler.submit(self.order.model.name, submitted)
            except QueueFullError:
                if not self._accepted:
                    raise
                await asyncio.sleep(min(RETRY_SECONDS, left))
            except UserError as error:
                raise user_error(error) from None
            else:
                self._accepted = True
                return stream


def written(order: EmbeddingOrder, vectors: Sequence[NDArray[np.float32]]) -> bytes:
    """Write the answer; in a thread, since many vectors take a while."""
    return json_bytes(embedding_list(order, vectors))


async def vector_of(stream: Stream) -> NDArray[np.float32]:
    """Wait for the vector of a job.

    Raises:
        ServeError: The job failed, or the server ended it.
    """
    vector = None
    while events := await stream.take():
        for event in events:
            if isinstance(event, EmbeddingEvent):
                vector = event.vector
            elif isinstance(event, EndEvent) and event.reason == "cancelled":
                message = "the server stopped before the text was embedded; try again"
                raise UnavailableError(message, headers={"Retry-After": "1"})
            elif isinstance(event, EndEvent) and event.error is not None:
                raise event.error
    if vector is None:
        raise ServeError("the text could not be embedded; try again")
    return vector
