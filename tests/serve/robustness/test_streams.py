"""Answers on the way: errors in the middle, silence, and clients that leave."""

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient
from support.serving.connection import Connection
from support.serving.schedulers import FailingScheduler, HeldScheduler
from support.serving.served import events, served
from support.serving.until import until

from adaptive_lm.serve.application.build import build
from adaptive_lm.serve.errors import QueueFullError, ServeError, UnavailableError
from adaptive_lm.serve.scheduler.job import EndEvent
from adaptive_lm.serve.settings import Settings

CASES = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
    ("/v1/completions", {"prompt": "hi"}),
    ("/v1/responses", {"input": "hi"}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}),
]
BUSY = QueueFullError("found 64 requests that wait, expected fewer; try again", headers={"Retry-After": "3"})
GONE = UnavailableError("the memory is full; try again later", code="out_of_memory")


def failing(folder: Path, error: ServeError, after: int) -> Any:
    return served(folder, wrap=lambda inner: FailingScheduler(inner, error, after))


@pytest.mark.parametrize(("path", "body"), CASES)
def test_an_error_in_a_stream_is_its_last_event_s17(folder: Path, path: str, body: dict[str, Any]) -> None:
    with failing(folder, GONE, after=3) as client:
        response = client.post(path, json={**body, "stream": True})
    assert response.status_code == 200
    assert "[DONE]" not in response.text
    last = events(response.text)[-1]
    if path == "/v1/responses":
        assert (last["type"], last["message"], last["code"]) == ("error", GONE.message, "out_of_memory")
    elif path == "/v1/messages":
        assert response.text.split("\n\n")[-2].startswith("event: error\n")
        assert last == {"type": "error", "error": {"type": "overloaded_error", "message": GONE.message}}
    else:
        error = {"message": GONE.message, "type": "server_error", "param": None, "code": "out_of_memory"}
        assert last == {"error": error}


def test_the_official_client_raises_the_error_of_a_stream_s17(folder: Path) -> None:
    with failing(folder, GONE, after=3) as client:
        official = openai.OpenAI(api_key="none", base_url="http://127.0.0.1/v1", http_client=client, max_retries=0)
        stream = official.completions.create(model="demo", prompt="hi", stream=True)
        with pytest.raises(openai.APIError, match="the memory is full"):
            list(stream)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), CASES)
def test_a_failure_before_the_first_token_has_its_own_status_s27(
    folder: Path, path: str, body: dict[str, Any], stream: bool
) -> None:
    with failing(folder, BUSY, after=0) as client:
        response = client.post(path, json={**body, "stream": stream})
    assert response.status_code == 429
    assert response.headers["Retry-After"] == "3"
    assert response.json()["error"]["type"] == "rate_limit_error"


def test_a_bug_in_a_stream_tells_nothing_about_the_inside_s46(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    bug = RuntimeError("secret at /root")
    with served(folder, wrap=lambda inner: FailingScheduler(inner, bug, 2)) as client:  # type: ignore[arg-type]
        response = client.post("/v1/completions", json={"prompt": "hi", "stream": True})
    assert "secret" not in response.text
    assert events(response.text)[-1]["error"]["type"] == "server_error"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), CASES)
def test_a_client_that_leaves_before_the_first_token_frees_all_its_jobs_s22_s23_s24(
    folder: Path, path: str, body: dict[str, Any], stream: bool
) -> None:
    async def go() -> None:
        scheduler = HeldScheduler.of(folder)
        n = 3 if path in ("/v1/chat/completions", "/v1/completions") else 1
        connection = Connection(build(Settings(), scheduler), path, {**body, "stream": stream, "n": n})
        await until(lambda: len(scheduler.streams) == n)
        assert not any(one.cancelled for one in scheduler.streams)
        connection.leave()
        await until(lambda: all(one.cancelled for one in scheduler.streams), seconds=0.5)
        await connection.task
        assert not connection.sent

    asyncio.run(go())


@pytest.mark.parametrize(("path", "body"), CASES)
def test_a_client_that_leaves_in_a_stream_frees_its_slot_s21(folder: Path, path: str, body: dict[str, Any]) -> None:
    async def go() -> None:
        scheduler = HeldScheduler.of(folder)
        app = build(Settings(), scheduler, keep_alive=0.005)
        connection = Connection(app, path, {**body, "stream": True})
        await until(lambda: connection.text.count(": keep-alive") > 2)
        connection.leave()
        await until(lambda: scheduler.streams[0].cancelled, seconds=0.5)
        await connection.task

    asyncio.run(go())


@pytest.mark.parametrize(("path", "body"), CASES)
def test_a_silent_stream_is_kept_alive_by_comments_s19(folder: Path, path: str, body: dict[str, Any]) -> None:
    async def go() -> None:
        scheduler = HeldScheduler.of(folder)
        connection = Connection(build(Settings(), scheduler, keep_alive=0.01), path, {**body, "stream": True})
        await until(lambda: connection.text.count(": keep-alive\n\n") >= 3)
        assert connection.sent[0]["status"] == 200
        end = EndEvent("eos", None, 2, 0, 0, 0, 0.0, 0.0)
        scheduler.streams[0].events.put_nowait([end])
        await until(lambda: scheduler.streams[0].events.empty())
        scheduler.streams[0].events.put_nowait([])
        await connection.task
        assert connection.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}

    asyncio.run(go())


def test_a_job_knows_its_client_by_key_or_address(folder: Path) -> None:
    async def go() -> None:
        scheduler = HeldScheduler.of(folder)
        app = build(Settings(api_keys=(("ann", "sk-1"),)), scheduler)
        one = Connection(app, "/v1/completions", {"prompt": "a"}, [(b"authorization", b"Bearer sk-1")])
        other = Connection(build(Settings(), scheduler), "/v1/completions", {"prompt": "a"})
        await until(lambda: len(scheduler.streams) == 2)
        assert {stream.job.client for stream in scheduler.streams} == {"ann", "1.2.3.4"}
        for connection in (one, other):
            connection.leave()
            await connection.task

    asyncio.run(go())


def test_more_texts_than_the_queue_holds_are_refused(folder: Path) -> None:
    client = TestClient(build(Settings(max_queue=4), HeldScheduler.of(folder)), base_url="http://127.0.0.1")
    response = client.post("/v1/completions", json={"prompt": ["a", "b", "c"], "n": 2})
    assert response.status_code == 400
    assert "found 6 texts" in response.json()["error"]["message"]
