"""Build the ASGI application from settings and a scheduler."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from ..protocols.grammars import Grammars
from ..routes.stream import KEEP_ALIVE_SECONDS
from ..scheduler.job import Scheduler
from ..settings import Settings
from .docs_page import docs_page
from .hosts import Hosts, allowed_hosts
from .middleware import BodyLimit, Errors, Keys, RequestId, public_paths
from .openapi import openapi
from .table import ENDPOINTS

EXPOSED = ("X-Request-Id", "X-Ignored-Fields", "Retry-After")
Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]


def build(
    settings: Settings,
    scheduler: Scheduler,
    *,
    pages: Sequence[Route] = (),
    routes: Sequence[Route] = (),
    middleware: Sequence[Callable[[ASGIApp], ASGIApp]] = (),
    lifespan: Lifespan | None = None,
    keep_alive: float = KEEP_ALIVE_SECONDS,
) -> ASGIApp:
    """Build the application.

    Args:
        settings: Keys, limits and origins.
        scheduler: Where texts are generated.
        pages: Routes that need no key.
        routes: Further routes that need one.
        middleware: Pure ASGI, put inside the request id and outside all else, the first outermost.
        lifespan: What starts and ends with the application.
        keep_alive: Seconds without news until a stream gets a comment.
    """
    own = [Route(one.path, one.handler, methods=[one.method]) for one in ENDPOINTS]
    documents = [Route("/openapi.json", document), Route("/docs", docs)]
    router = Router([*own, *documents, *routes, *pages], redirect_slashes=False, lifespan=lifespan)

    exact = {one.path for one in ENDPOINTS if one.public} | {page.path for page in pages if "{" not in page.path}
    folders = [page.path.partition("{")[0] for page in pages if "{" in page.path]
    app: ASGIApp = BodyLimit(Endpoints(router, settings, scheduler, keep_alive), settings.max_body)
    app = Keys(app, settings.api_keys, public_paths(exact, folders))
    app = Hosts(app, allowed_hosts(settings.host, settings.allowed_hosts))
    app = Errors(app)
    if settings.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=EXPOSED,
        )
    for factory in reversed(middleware):
        app = factory(app)
    return RequestId(app)


class Endpoints:
    """The router, and what endpoints find at `request.app`. Unlike `Starlette` it leaves every error to `Errors`.

    Args:
        router: The endpoints.
        settings: Those of the server.
        scheduler: Where texts are generated.
        keep_alive: Seconds without news until a stream gets a comment.
    """

    def __init__(self, router: Router, settings: Settings, scheduler: Scheduler, keep_alive: float) -> None:
        self.router, self.settings, self.scheduler, self.keep_alive = router, settings, scheduler, keep_alive
        self.grammars = Grammars()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        scope["app"] = self
        await self.router(scope, receive, send)
        if scope["type"] == "lifespan":
            self.grammars.close()


async def document(_: Request) -> Response:
    """Return the OpenAPI document."""
    return JSONResponse(openapi())


async def docs(_: Request) -> Response:
    """Return a page that lists the endpoints."""
    return HTMLResponse(docs_page())
