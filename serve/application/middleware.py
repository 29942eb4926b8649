"""What stands before every endpoint, as pure ASGI: request ids, headers, errors, keys, and the size of bodies."""

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Callable, Collection, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import NotAuthorizedError, ServeError, TooLargeError
from ..protocols.answer import json_bytes
from ..protocols.anthropic.errors import error_body as anthropic_error
from ..protocols.openai.errors import error_body as openai_error
from ..routes.stream import public, send_json

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""Request ids of clients that are taken over: nothing in them can break a line of a log."""
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
"""For answers that do not set their own."""

log = logging.getLogger("adaptive_lm.serve")


class RequestId:
    """Gives each request an id, its client's or a new one, and sends it back as `X-Request-Id`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        address = scope.get("client")
        scope["state"] = {
            **scope.get("state", {}),
            "request_id": request_id,
            "client": address[0] if address else "local",
        }

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)


class Errors:
    """Writes errors in the shape of the protocol. A 500 says nothing about the inside; the log has the traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_and_watch(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, send_and_watch)
        except Exception as error:
            if isinstance(error, HTTPException):
                error = from_http(error, scope)
            if not isinstance(error, ServeError) or error.status == 500:
                log.exception("a request failed", extra={"request_id": scope["state"]["request_id"]})
            if started:  # the client sees an answer that breaks off
                raise
            await send_error(public(error), scope, send)


async def send_error(error: ServeError, scope: Scope, send: Send) -> None:
    """Answer with an error."""
    anthropic = scope["path"].startswith("/v1/messages")
    body = json_bytes(anthropic_error(error) if anthropic else openai_error(error))
    headers = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send_json(send, b"" if scope["method"] == "HEAD" else body, headers, error.status)


def from_http(error: HTTPException, scope: Scope) -> ServeError:
    """Return the router's error as one of ours."""
    if error.status_code == 404:
        message = f"there is no {scope['path'][:80]!r} here; GET /openapi.json lists the endpoints"
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        message = f"found the method {scope['method'][:20]}, expected {allowed}"
    else:
        message = error.detail
    result = ServeError(message, headers=error.headers)
    result.status, result.kind = error.status_code, "invalid_request_error"
    return result


class Keys:
    """Lets only clients with a key in; public paths need none, and everything else does, whether it exists or not.

    Args:
        app: The application inside.
        keys: (name, key) of each client; none lets everybody in.
        is_public: Whether a path needs no key.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[tuple[str, str]], is_public: Callable[[str], bool]) -> None:
        self.app, self.is_public = app, is_public
        self._keys = [(name, hashlib.sha256(key.encode()).digest()) for name, key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection.

        Raises:
            NotAuthorizedError: The key is missing or wrong.
        """
        if scope["type"] == "http" and self._keys and not self.is_public(route_path(scope)):
            headers = Headers(scope=scope)
            scheme, _, token = headers.get("authorization", "").partition(" ")
            key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
            scope["state"]["client"] = self._client(key)
        await self.app(scope, receive, send)

    def _client(self, key: str) -> str:
        digest = hashlib.sha256(key.encode()).digest()
        names = [
            name for name, right in self._keys if hmac.compare_digest(digest, right)
        ]  # every key takes the same time
        if names:
            return names[0]
        problem = "found a wrong API key" if key else "found no API key"
        raise NotAuthorizedError(
            f"{problem}, expected one of this server's; send the header Authorization: Bearer KEY, or X-Api-Key: KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


class BodyLimit:
    """Refuses bodies over a size, before they are read whole."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection.

        Raises:
            TooLargeError: The body is too large, by its own header or as it arrives.
        """
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > self.most:
            raise self._error(declared[:20])
        size = 0

        async def receive_and_count() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.most:
                raise self._error(f"more than {self.most}")
            return message

        await self.app(scope, receive_and_count, send)

    def _error(self, found: str) -> TooLargeError:
        return TooLargeError(
            f"found a body of {found} bytes, this server takes {self.most}; send less", headers={"Connection": "close"}
        )


def route_path(scope: Scope) -> str:
    """Return the path that the router sees."""
    root: str = scope.get("root_path", "")
    path: str = scope["path"]
    return path[len(root) :] if root and path.startswith(root + "/") else path


def public_paths(exact: Collection[str], prefixes: Sequence[str]) -> Callable[[str], bool]:
    """Return a function that knows the paths without a key: exact ones, and those below a folder."""
    return lambda path: path in exact or path.startswith(tuple(prefixes))
