"""Times every HTTP request and writes its access line. Pure ASGI: nothing is buffered."""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from .jobs import CURRENT, RequestRecord

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
CLOSED = 499
"""Status in logs and metrics of a request whose client left before it was answered, as nginx has it."""


class Requests(Protocol):
    """Where requests are reported."""

    def request_began(self) -> RequestRecord:
        """Begin a record."""

    def request_ended(self, record: RequestRecord, scope: Scope, status: int, error: BaseException | None) -> None:
        """Report a request, however it ended."""


class ObserveMiddleware:
    """Report each HTTP request to `requests`; must stand outside whatever answers.

    Args:
        app: The application.
        requests: Where they are reported.
    """

    def __init__(self, app: App, requests: Requests) -> None:
        self.app, self.requests = app, requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = self.requests.request_began()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif record.first_byte is None and message.get("body"):
                record.first_byte = time.perf_counter()
            await send(message)

        token = CURRENT.set(record)
        try:
            await self.app(scope, receive, watched)
        except BaseException as error:
            left = not isinstance(error, Exception)  # the task was cancelled: the client left, or the server ends
            self.requests.request_ended(record, scope, status or (CLOSED if left else 500), error)
            raise
        else:
            self.requests.request_ended(record, scope, status or CLOSED, None)
        finally:
            CURRENT.reset(token)
