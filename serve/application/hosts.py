"""The names under which a server can be reached, against DNS rebinding."""

from collections.abc import Collection
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import WrongHostError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def allowed_hosts(host: str, allowed: Collection[str]) -> frozenset[str] | None:
    """Return the names that requests may give as Host; None for any.

    A server on the loopback address answers to the names of that address alone. Otherwise any page on the web could
    give its own name this address, and then read the answers of a server that the browser reaches and the page does
    not.
    """
    if allowed:
        return frozenset(name.lower() for name in allowed)
    return frozenset({*LOOPBACK, host.lower()}) if is_loopback(host) else None


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Hosts:
    """Refuses requests for another host.

    Args:
        app: The application inside.
        allowed: Names without a port, in lower case; None for any.
    """

    def __init__(self, app: ASGIApp, allowed: frozenset[str] | None) -> None:
        self.app, self.allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection.

        Raises:
            WrongHostError: The request names another host.
        """
        if scope["type"] == "http" and self.allowed is not None:
            host = Headers(scope=scope).get("host")  # without one it is not a browser
            if host is not None and name_of(host) not in self.allowed:
                raise WrongHostError(
                    f"found the host {host[:80]!r}, this server answers to {', '.join(sorted(self.allowed))}; reach it "
                    f"by one of these, or start it with: --allowed-host {name_of(host)[:80] or 'NAME'}"
                )
        await self.app(scope, receive, send)


def name_of(host: str) -> str:
    """Return the host of a Host header, without its port and the brackets of IPv6, in lower case."""
    host = host.strip().lower()
    if host.startswith("[") and "]" in host:
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host
