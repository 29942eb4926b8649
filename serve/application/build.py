"""Build the ASGI application from settings and a scheduler."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..routes.stream import KEEP_ALIVE_SECONDS
from ..scheduler.job import Scheduler
from ..settings import Settings
from .docs_page import docs_page
from .middleware import BodyLimit, Errors, Keys, RequestId, public_paths
from .openapi import openapi
from .table import ENDPOINTS

EXPOSED = ("X-Request-Id", "X-Ignored-Fields", "Retry-After")
Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


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
    router = Starlette(
        routes=[*own, *documents, *routes, *pages],
        lifespan=lifespan,
        exception_handlers={HTTPException: raise_on},
    )
    router.router.redirect_slashes = False  # one address for each endpoint
    router.state.settings, router.state.scheduler, router.state.keep_alive = settings, scheduler, keep_alive

    exact = {one.path for one in ENDPOINTS if one.public} | {page.path for page in pages if "{" not in page.path}
    folders = [page.path.partition("{")[0] for page in pages if "{" in page.path]
    app: ASGIApp = BodyLimit(router, settings.max_body)
    app = Keys(app, settings.api_keys, public_paths(exact, folders))
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


async def raise_on(_: Request, error: Exception) -> Response:
    """Leave the router's errors to `Errors`."""
    raise error


async def document(_: Request) -> Response:
    """Return the OpenAPI document."""
    return JSONResponse(openapi())


async def docs(_: Request) -> Response:
    """Return a page that lists the endpoints."""
    return HTMLResponse(docs_page())
