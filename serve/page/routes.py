"""Routes of the page: a table of its files, read once, so that an address can never reach another file."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

TYPES: Mapping[str, str] = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
"""Ending of a file -> its type. A file of another kind is no part of the page."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Text of a model becomes text nodes only: the browser refuses every way to read it as HTML.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # No file has its version in its name: a browser keeps it, and asks each time whether it is still the same.
    "Cache-Control": "no-cache",
}
INDEX = "index.html"


@dataclass(frozen=True)
class PageFile:
    """A file of the page, in memory."""

    body: bytes
    headers: Mapping[str, str]
    """Type, validator and policies."""


def page_files() -> dict[str, PageFile]:
    """Read the files of the page, by their place below `static/`."""
    return dict(_files(files(__package__).joinpath("static"), ""))


def page_routes() -> list[Route]:
    """Return the routes `/` and `/page/...`."""
    table = page_files()

    async def index(request: Request) -> Response:
        return _respond(request, table[INDEX])

    async def asset(request: Request) -> Response:
        page_file = table.get(request.path_params["place"])
        if page_file is None:
            return PlainTextResponse("this page has no such file; open / for the page\n", 404, HEADERS)
        return _respond(request, page_file)

    return [
        Route("/", index, methods=["GET"], include_in_schema=False),
        Route("/page/{place:path}", asset, methods=["GET"], include_in_schema=False),
    ]


def _files(folder: Traversable, place: str) -> Iterator[tuple[str, PageFile]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry, f"{place}{entry.name}/")
        elif (media_type := TYPES.get(entry.name.rpartition(".")[2])) is not None:
            body = entry.read_bytes()
            tag = hashlib.sha256(body).hexdigest()[:32]
            yield f"{place}{entry.name}", PageFile(body, {**HEADERS, "Content-Type": media_type, "ETag": f'"{tag}"'})


def _respond(request: Request, page_file: PageFile) -> Response:
    tags = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if page_file.headers["ETag"] in tags:
        return Response(status_code=304, headers=page_file.headers)
    return Response(page_file.body, headers=page_file.headers)
