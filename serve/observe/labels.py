"""Labels of metrics that come from a request: few values, whatever a client sends (S42)."""

from collections.abc import Container, Mapping
from typing import Any

OTHER = "other"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def method_label(scope: Mapping[str, Any]) -> str:
    """Return the HTTP method, or "other" for one that HTTP does not define."""
    method = scope["method"]
    return method if method in METHODS else OTHER


def route_label(scope: Mapping[str, Any], paths: Container[str] = ()) -> str:
    """Return the template of the route that served the request, such as `/v1/models/{model}`, else "other".

    A request that middleware answered, for a wrong key for example, was not routed: its path decides, if it is one of
    `paths`.
    """
    template = getattr(scope.get("route"), "path", None)
    if isinstance(template, str):
        return template
    path = scope.get("path", "")
    return path if path in paths else OTHER


def status_label(status: int) -> str:
    """Return the status; one outside HTTP's range would be a fault of ours, and is "other"."""
    return str(status) if 100 <= status <= 599 else OTHER
