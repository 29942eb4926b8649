"""Reading requests: the JSON body, and who sends it."""

import asyncio
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from ..errors import ServeError
from ..protocols.answer import json_bytes
from ..protocols.body import Body, parse
from ..protocols.order import Caller
from ..scheduler.job import Scheduler
from ..settings import Settings
from .stream import ignored_header

Kind = TypeVar("Kind", bound=Body)
BODY_SECONDS = 30.0
"""Time that a client has to send a body."""


class MediaTypeError(ServeError):
    """A body that is not declared as JSON."""

    status, kind = 415, "invalid_request_error"


class SlowBodyError(ServeError):
    """A body that does not arrive in time."""

    status, kind = 408, "timeout_error"


def scheduler_of(request: Request) -> Scheduler:
    """Return the server's scheduler."""
    scheduler: Scheduler = request.app.scheduler
    return scheduler


def settings_of(request: Request) -> Settings:
    """Return the server's settings."""
    settings: Settings = request.app.settings
    return settings


def caller_of(request: Request) -> Caller:
    """Return who sends a request."""
    return Caller(
        client=request.scope["state"]["client"],
        models=scheduler_of(request).models(),
        settings=settings_of(request),
        grammars=request.app.grammars,
    )


async def read_body(request: Request, kind: type[Kind]) -> Kind:
    """Read the JSON body of a request.

    Raises:
        ServeError: It is not JSON, not what the endpoint takes, too large, or too slow.
    """
    declared = request.headers.get("content-type", "")
    media = declared.partition(";")[0].strip().lower()
    if media != "application/json":
        raise MediaTypeError(f"found Content-Type {declared[:60]!r}, expected application/json; send that header")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise MediaTypeError("found a compressed body, expected plain JSON; leave the header Content-Encoding out")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            raw = await request.body()
    except TimeoutError:
        raise SlowBodyError(
            f"the body did not arrive within {BODY_SECONDS:g} seconds; send it at once", headers={"Connection": "close"}
        ) from None
    if len(raw) > 65536:
        return await asyncio.to_thread(parse, kind, raw)
    return parse(kind, raw)


def json_answer(body: Body, ignored: list[str] | None = None, status: int = 200) -> Response:
    """Return a body as the answer."""
    response = Response(json_bytes(body), status, media_type="application/json")
    response.raw_headers += ignored_header(ignored or [])
    return response
