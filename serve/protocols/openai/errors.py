"""Errors in OpenAI's shape."""

from ...errors import ServeError
from ..body import Body


class ErrorDetail(Body):
    """One error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Body):
    """The body of every answer with a status of 400 or more."""

    error: ErrorDetail


def error_body(error: ServeError) -> ErrorBody:
    """Return the body of an error."""
    return ErrorBody(error=ErrorDetail(message=error.message, type=error.kind, param=error.param, code=error.code))
