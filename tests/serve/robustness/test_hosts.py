"""A page on the web cannot reach a server of this machine by giving its own name the loopback address."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient
from support.serving.schedulers import HeldScheduler

from adaptive_lm.serve.application.build import build
from adaptive_lm.serve.settings import Settings


def status(folder: Path, name: str, path: str = "/props", **settings: object) -> int:
    app = build(Settings(**settings), HeldScheduler.of(folder))  # type: ignore[arg-type]  # names and values of a test
    return TestClient(app, base_url="http://127.0.0.1").get(path, headers={"host": name}).status_code


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "LOCALHOST", "127.0.0.1:8000", "[::1]:8000", "[::1]"])
def test_a_loopback_server_answers_to_the_names_of_its_machine(folder: Path, host: str) -> None:
    assert status(folder, host) == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1", "a:b:c"],
)
@pytest.mark.parametrize("path", ["/props", "/health/live", "/openapi.json", "/nowhere"])
def test_a_loopback_server_refuses_any_other_name(folder: Path, host: str, path: str) -> None:
    assert status(folder, host, path) == 421


def test_the_refusal_names_a_cure_that_works(folder: Path) -> None:
    app = build(Settings(), HeldScheduler.of(folder))
    answer = TestClient(app, base_url="http://127.0.0.1").get("/props", headers={"host": "chat.example:80"}).json()
    assert "--allowed-host chat.example" in answer["error"]["message"]
    assert status(folder, "chat.example:80", allowed_hosts=("chat.example",)) == 200
    assert status(folder, "evil.example", allowed_hosts=("chat.example",)) == 421


def test_a_server_of_every_address_answers_to_any_name(folder: Path) -> None:
    assert status(folder, "10.1.2.3:8000", host="0.0.0.0") == 200  # noqa: S104  # nothing listens
