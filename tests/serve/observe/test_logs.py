"""Logs: one access line per request, no text and no key in it (S39), and no forged line (S38, CWE-117)."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from support.cases import each

from adaptive_lm.runtime.generation.request import Token
from adaptive_lm.serve.observe.logs import configure_logs
from adaptive_lm.serve.observe.middleware import Receive, Scope, Send
from adaptive_lm.serve.observe.telemetry import Telemetry

SECRETS = ("sk-secret-1", "How do mountains form", "a private answer")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


class RequestId:
    """Stands in for the middleware that gives each request its id and its client."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        scope["state"] = {"request_id": headers.get(b"x-request-id", b"r-1").decode("latin-1"), "client": "alice"}
        await self.app(scope, receive, send)


def application(telemetry: Telemetry, tokens: list[Token]) -> Any:
    async def chat(request: Request) -> Response:
        job = telemetry.job("demo", 6)
        job.started()
        for token in tokens:
            job.token(token)
        job.ended("length", dial=0.5, cached_tokens=4, drafted=3, accepted=2)
        return PlainTextResponse("a private answer")

    async def broken(request: Request) -> Response:
        raise RuntimeError("a fault\nforged line")

    async def endless(request: Request) -> Response:
        async def parts() -> Any:
            job = telemetry.job("demo", 6)
            job.started()
            while True:
                job.token(tokens[0])
                yield b"x"
                await asyncio.sleep(0)

        return StreamingResponse(parts())

    async def ready(request: Request) -> Response:
        return JSONResponse({}, 503 if "loading" in request.query_params else 200)

    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/broken", broken),
        Route("/endless", endless),
        Route("/health/ready", ready),
    ]
    return RequestId(telemetry.middleware(Starlette(routes=routes)))


def lines(
    telemetry: Telemetry, tokens: list[Token], style: Any, method: str, path: str, level: Any = "info", **more: Any
) -> list[str]:
    stream = io.StringIO()
    configure_logs(level, style, stream)

    async def run() -> None:
        transport = httpx.ASGITransport(application(telemetry, tokens), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.request(method, path, **more)

    asyncio.run(run())
    return stream.getvalue().splitlines()


def test_a_request_has_one_line_with_its_tokens_times_dial_and_status(
    telemetry: Telemetry, tokens: list[Token]
) -> None:
    (line,) = lines(telemetry, tokens, "json", "POST", "/v1/chat/completions?key=sk-secret-1")
    fields = json.loads(line)
    assert fields.pop("seconds") > 0
    assert fields.pop("queue_seconds") >= 0
    assert fields.pop("first_token_seconds") >= 0
    assert fields.pop("timestamp").endswith("Z")
    executed, dense = (
        sum(getattr(token.usage, name) for token in tokens) for name in ("executed_flops", "dense_flops")
    )
    assert fields == {
        "event": "request",
        "level": "info",
        "request_id": "r-1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "client": "alice",
        "model": "demo",
        "prompt_tokens": 6,
        "cached_tokens": 4,
        "new_tokens": len(tokens),
        "drafted": 3,
        "accepted": 2,
        "finish": "length",
        "dial": 0.5,
        "share": round(executed / dense, 4),
    }


@pytest.mark.parametrize("style", ["json", "plain"])
@pytest.mark.parametrize("level", ["debug", "info"])
def test_no_prompt_no_answer_and_no_key_is_logged(
    telemetry: Telemetry, tokens: list[Token], style: str, level: str
) -> None:
    written = lines(
        telemetry,
        tokens,
        style,
        "POST",
        "/v1/chat/completions?api_key=sk-secret-1",
        level,
        headers={"authorization": "Bearer sk-secret-1", "x-api-key": "sk-secret-1", "cookie": "sk-secret-1"},
        json={"messages": [{"role": "user", "content": "How do mountains form"}]},
    )
    assert len(written) == 1
    assert not [secret for secret in SECRETS if secret in written[0]]


@each("style", ["json", "plain"])
@each("forged", ["%0d%0a", "%0a", "%0b", "%1b[2K", "%c2%85", "%e2%80%a8", "%7f", "%00"])
def test_a_path_cannot_forge_a_line(telemetry: Telemetry, tokens: list[Token], style: str, forged: str) -> None:
    written = lines(telemetry, tokens, style, "GET", f"/x{forged}2026-11-27 error forged status=200")
    assert len(written) == 1
    assert written[0].isprintable()
    assert "status=404" in written[0] or '"status": 404' in written[0]


@pytest.mark.parametrize("style", ["json", "plain"])
def test_a_request_id_cannot_forge_a_line(telemetry: Telemetry, tokens: list[Token], style: str) -> None:
    written = lines(telemetry, tokens, style, "GET", "/x", headers={"x-request-id": b'a\x85\x9b b=c "d'})
    assert len(written) == 1
    assert written[0].isprintable()
    if style == "plain":
        assert 'request_id="a\\x85\\x9b b=c \\"d"' in written[0]


def test_a_plain_line_can_be_read(telemetry: Telemetry, tokens: list[Token]) -> None:
    (line,) = lines(telemetry, tokens, "plain", "POST", "/v1/chat/completions")
    assert line[19:].startswith(" info    request request_id=r-1 method=POST path=/v1/chat/completions status=200 ")
    assert line.endswith(f" share={line.rpartition('=')[2]}")


def test_a_fault_is_logged_with_its_traceback_in_indented_lines(telemetry: Telemetry, tokens: list[Token]) -> None:
    first, *rest = lines(telemetry, tokens, "plain", "GET", "/broken")
    assert " error   request failed " in first
    assert "status=500" in first
    assert rest[-2:] == ["  | RuntimeError: a fault", "  | forged line"]
    assert all(line.startswith("  | ") for line in rest)
    (line,) = lines(telemetry, tokens, "json", "GET", "/broken")
    assert "RuntimeError: a fault" in json.loads(line)["exception"]


def test_probes_are_logged_only_when_they_fail_or_at_debug(telemetry: Telemetry, tokens: list[Token]) -> None:
    assert lines(telemetry, tokens, "json", "GET", "/health/ready") == []
    assert len(lines(telemetry, tokens, "json", "GET", "/health/ready?loading=1")) == 1
    assert len(lines(telemetry, tokens, "json", "GET", "/health/ready", "debug")) == 1
    assert lines(telemetry, tokens, "json", "POST", "/v1/chat/completions", "warning") == []


def test_a_client_that_leaves_has_a_line_too(telemetry: Telemetry, tokens: list[Token]) -> None:
    stream = io.StringIO()
    configure_logs("info", "json", stream)

    async def run() -> None:
        begun = asyncio.Event()

        async def send(message: Any) -> None:
            if message.get("body"):
                begun.set()

        scope = {"type": "http", "method": "GET", "path": "/endless", "headers": [], "query_string": b""}
        task = asyncio.create_task(application(telemetry, tokens)(scope, asyncio.Event().wait, send))
        await asyncio.wait_for(begun.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    (line,) = stream.getvalue().splitlines()
    fields = json.loads(line)
    assert (fields["status"], fields["finish"]) == (200, "cancelled")
    assert fields["new_tokens"] >= 1


def test_lines_of_libraries_have_the_same_format() -> None:
    stream = io.StringIO()
    configure_logs("info", "json", stream)
    configure_logs("info", "json", stream)  # once more adds no second handler
    logging.getLogger("uvicorn.error").warning("found %s\nforged", "this")
    (line,) = stream.getvalue().splitlines()
    fields = json.loads(line)
    assert (fields["event"], fields["level"]) == ("found this\\x0aforged", "warning")


def test_a_long_value_is_cut(telemetry: Telemetry, tokens: list[Token]) -> None:
    (line,) = lines(telemetry, tokens, "json", "GET", "/" + "x" * 50_000)
    assert len(line) < 2000
