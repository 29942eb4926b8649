"""Errors that a client may see: an HTTP status and a message that says what was found, expected, and what to do.

Each protocol renders them in its own shape (`serve/protocols`).
"""

from collections.abc import Mapping


class ServeError(Exception):
    """A request that is refused or ends early.

    Args:
        message: For the client: what was found, what was expected, what to do. Never a path or a traceback.
        code: A word for programs, such as `model_not_found`; None where `kind` says enough.
        param: The field of the request at fault.
        headers: Headers of the response.
    """

    status = 500
    """HTTP status."""
    kind = "server_error"
    """OpenAI's `type` of the error."""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


class BadRequestError(ServeError):
    """A body or a setting that cannot be served."""

    status, kind = 400, "invalid_request_error"


class NotAuthorizedError(ServeError):
    """A key that is missing or wrong."""

    status, kind = 401, "authentication_error"


class WrongHostError(ServeError):
    """A request for a host that this server is not."""

    status, kind = 421, "invalid_request_error"


class NotFoundError(ServeError):
    """A model or an address that does not exist."""

    status, kind = 404, "invalid_request_error"


class TooLargeError(ServeError):
    """A body or headers over the limit."""

    status, kind = 413, "invalid_request_error"


class QueueFullError(ServeError):
    """More requests wait than the queue holds; the header `Retry-After` says when to try again."""

    status, kind = 429, "rate_limit_error"


class UnavailableError(ServeError):
    """The server loads, drains, has no memory for the request, or its engine stopped."""

    status, kind = 503, "server_error"


class DeadlineError(ServeError):
    """The request did not end within its time."""

    status, kind = 504, "timeout_error"


class UnsupportedError(ServeError):
    """A request that is right, for what this server or model does not do."""

    status, kind = 501, "invalid_request_error"
