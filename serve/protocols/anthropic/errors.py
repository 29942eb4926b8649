"""Errors in Anthropic's shape."""

from typing import Literal

from ...errors import ServeError
from ..body import Body

KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


class ErrorDetail(Body):
    """One error."""

    type: str
    message: str


class ErrorBody(Body):
    """The body of every answer with a status of 400 or more."""

    type: Literal["error"]
    error: ErrorDetail


def error_body(error: ServeError) -> ErrorBody:
    """Return the body of an error."""
    kind = KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return ErrorBody(type="error", error=ErrorDetail(type=kind, message=error.message))
