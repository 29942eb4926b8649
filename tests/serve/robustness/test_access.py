"""Who may call what: keys, origins, headers, sizes; and what errors tell."""

import logging
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from support.cases import each
from support.serving.schedulers import HeldScheduler

from adaptive_lm.serve.application.build import build
from adaptive_lm.serve.application.table import ENDPOINTS
from adaptive_lm.serve.settings import Settings

KEY = "sk-Wxyz0123456789"
PUBLIC = {"/health/live", "/health/ready", "/", "/page/{file:path}"}


async def page(_: Any) -> PlainTextResponse:
    return PlainTextResponse("page")


async def broken(_: Any) -> PlainTextResponse:
    raise RuntimeError(f"secret at /srv/secret/model, key {KEY}")


PAGES = (Route("/", page), Route("/page/{file:path}", page))
EXTRA = (
    Route("/metrics", page),
    Route("/broken", broken, methods=["GET", "POST"]),
    Route("/v1/messages/broken", broken),
)


def client_of(folder: Path, **settings: Any) -> TestClient:
    app = build(Settings(**settings), HeldScheduler.of(folder), pages=PAGES, routes=EXTRA)
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture
def locked(folder: Path) -> TestClient:
    return client_of(folder, api_keys=(("ann", KEY), ("bob", "sk-other")), cors_origins=("https://app.example",))


ROUTES = [(one.method, one.path.replace("{name:path}", "demo")) for one in ENDPOINTS]
ROUTES += [("GET", path) for path in ("/openapi.json", "/docs", "/metrics", "/broken", "/", "/page/a/b.js", "/nothing")]


@each(("method", "path"), ROUTES)
def test_every_route_but_the_public_ones_needs_a_key_s34(locked: TestClient, method: str, path: str) -> None:
    public = path in PUBLIC or path.startswith("/page/")
    status = locked.request(method, path).status_code
    assert (status != 401) == public, path
    assert locked.request(method, path, headers={"Authorization": f"Bearer {KEY}"}).status_code != 401


@each("path", ["/v1/chat/completions", "/v1/messages"])
@each(
    "headers",
    [
        {}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}, {"Authorization": KEY},
        {"Authorization": "Bearer "}, {"X-Api-Key": "wrong"}, {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY[:-1]}"}, {"Authorization": "Bearer \xff".encode("latin-1")},
    ],
)  # fmt: skip
def test_a_wrong_key_is_an_authentication_error_s35(locked: TestClient, path: str, headers: dict[str, Any]) -> None:
    response = locked.post(path, json={}, headers=headers)
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authentication_error"
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_a_key_is_taken_as_bearer_or_x_api_key_s35(locked: TestClient) -> None:
    for headers in ({"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer  {KEY}"}, {"X-Api-Key": "sk-other"}):
        assert locked.get("/v1/models", headers=headers).status_code == 200


@each(
    ("method", "path"),
    [
        ("POST", "/v1/completions/"), ("GET", "/V1/MODELS"), ("OPTIONS", "/v1/models"), ("HEAD", "/v1/models"),
        ("GET", "//v1/models"), ("GET", "/page/../v1/models"), ("GET", "/health/ready/../../v1/models"),
        ("TRACE", "/v1/models"), ("GET", "/v1/models?x=/health/live"), ("GET", "/health/live/"),
        ("GET", "/HEALTH/LIVE"),
    ],
)  # fmt: skip
def test_no_other_spelling_of_a_path_gets_past_the_key_s36(locked: TestClient, method: str, path: str) -> None:
    response = locked.request(method, path)
    assert response.status_code == 401 or response.text == "page", (response.status_code, response.text)


def test_trailing_slashes_and_other_methods_have_no_side_door_s36(folder: Path) -> None:
    client = client_of(folder)
    assert client.get("/v1/models/demo/").status_code == 404
    assert client.get("/health/live/", follow_redirects=False).status_code == 404
    assert client.head("/health/live").status_code == 200
    response = client.delete("/v1/chat/completions")
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")
    assert "expected POST" in response.json()["error"]["message"]


def test_only_exact_origins_may_call_from_a_page_s37(locked: TestClient) -> None:
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}
    allowed = locked.options("/v1/chat/completions", headers={"Origin": "https://app.example", **ask})
    assert allowed.status_code == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://app.example"
    for origin in ("https://app.example.evil", "http://app.example", "https://app.example:444", "null", "*"):
        refused = locked.options("/v1/chat/completions", headers={"Origin": origin, **ask})
        assert refused.status_code == 400
        assert "Access-Control-Allow-Origin" not in refused.headers
    answer = locked.get("/v1/models", headers={"Origin": "https://app.example"})
    assert answer.status_code == 401
    assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"  # a page can read the error


def test_without_origins_no_page_may_call_s37(folder: Path) -> None:
    response = client_of(folder).get("/v1/models", headers={"Origin": "https://app.example"})
    assert "Access-Control-Allow-Origin" not in response.headers


def test_a_request_id_is_given_back_or_made_s38(locked: TestClient) -> None:
    assert locked.get("/health/live", headers={"X-Request-Id": "abc-1.2_3"}).headers["X-Request-Id"] == "abc-1.2_3"
    for bad in ("a b", "a\tb", "x" * 65, "<b>", "a\x1b[31m", ""):
        made = locked.get("/health/live", headers={"X-Request-Id": bad}).headers["X-Request-Id"]
        assert made != bad
        assert len(made) == 32
    assert locked.get("/v1/models").headers["X-Request-Id"]


def test_keys_are_in_no_log_and_no_answer_s39(locked: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    texts = []
    for headers in ({"Authorization": f"Bearer {KEY}"}, {"X-Api-Key": KEY}):
        paths = ("/props", "/openapi.json", "/v1/models", "/nothing", "/docs")
        texts += [locked.get(path, headers=headers).text for path in paths]
    texts.append(locked.get("/props", headers={"Authorization": f"Bearer {KEY}wrong"}).text)
    assert KEY not in "".join(texts)
    assert KEY not in caplog.text


@pytest.mark.parametrize(("path", "method"), [("/broken", "GET"), ("/broken", "POST"), ("/v1/messages/broken", "GET")])
def test_a_500_tells_nothing_about_the_inside_s46(
    folder: Path, caplog: pytest.LogCaptureFixture, path: str, method: str
) -> None:
    response = client_of(folder).request(method, path, headers={"X-Request-Id": "look-me-up"})
    assert response.status_code == 500
    for secret in ("secret", "/srv/secret", "RuntimeError", "Traceback", ".py", KEY):
        assert secret not in response.text
    assert response.json()["error"]["type"] == ("api_error" if "messages" in path else "server_error")
    assert "secret at" in caplog.text  # the log has it all
    assert caplog.records[0].request_id == "look-me-up"


def test_a_declared_body_over_the_limit_is_refused_unread_s7(folder: Path) -> None:
    client = client_of(folder, max_body=1000)
    response = client.post("/tokenize", json={"content": "a" * 1000})
    assert response.status_code == 413
    assert "1000" in response.json()["error"]["message"]
    assert response.headers["Connection"] == "close"
    assert client.post("/tokenize", json={"content": "a" * 900}).status_code == 200


def test_a_body_that_grows_over_the_limit_is_refused_before_its_end_s7(folder: Path) -> None:
    sent = 0

    def endless() -> Any:
        nonlocal sent
        for _ in range(1000):
            sent += 100
            yield b"a" * 100

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await build(Settings(max_body=1000), HeldScheduler.of(folder))(scope, receive, send)

    headers = {"Content-Type": "application/json"}
    response = TestClient(app, base_url="http://127.0.0.1").post("/tokenize", content=endless(), headers=headers)
    assert response.status_code == 413
    message = client_of(folder, max_body=1000).post("/v1/messages", content=endless(), headers=headers)
    assert message.json()["error"]["type"] == "request_too_large"


def test_answers_have_headers_that_protect_a_browser(locked: TestClient) -> None:
    for path in ("/health/live", "/v1/models", "/nothing", "/"):
        headers = locked.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(("status", "code"), [("ready", 200), ("loading", 503), ("draining", 503), ("failed", 503)])
def test_health_says_whether_requests_are_accepted_s40(folder: Path, status: Any, code: int) -> None:
    scheduler = HeldScheduler(HeldScheduler.of(folder).infos, status)
    client = TestClient(build(Settings(), scheduler), base_url="http://127.0.0.1")
    assert client.get("/health/ready").status_code == code
    assert client.get("/health/ready").json() == {"status": status}
    assert client.get("/health/live").status_code == 200
