"""Labels of metrics that come from a request: few values, whatever a client sends (S42)."""

from collections.abc import Mapping
from typing import Any

OTHER = "other"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def method_label(scope: Mapping[str, Any]) -> str:
    """Return the HTTP method, or "other" for one that HTTP does not define."""
    method = scope["method"]
    return method if method in METHODS else OTHER


def route_label(scope: Mapping[str, Any]) -> str:
    """Return the template of the route that serves the request, such as `/v1/models/{model}`, else "other".

    A request that middleware answers, for a wrong key for example, was not routed: its path decides.
    """
    route = scope.get("route")
    if route is None:
        path = scope.get("path", "")
        routes = getattr(scope.get("app"), "routes", ())
        route = next((each for each in routes if _matches(each, path)), None)
    template = getattr(route, "path", None)
    return template if isinstance(template, str) else OTHER


def _matches(route: Any, path: str) -> bool:
    pattern = getattr(route, "path_regex", None)
    return pattern is not None and pattern.match(path) is not None


def status_label(status: int) -> str:
    """Return the status; one outside HTTP's range would be a fault of ours, and is "other"."""
    return str(status) if 100 <= status <= 599 else OTHER
