"""Clients that leave, on real connections."""

import http.client
import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.serving.page_stub import run
from support.serving.schedulers import HeldScheduler

from adaptive_lm.serve.application.build import build
from adaptive_lm.serve.settings import Settings

BODY = json.dumps({"prompt": "hello"})
STREAM = json.dumps({"prompt": "hello", "stream": True})


@pytest.fixture
def held(folder: Path) -> Iterator[tuple[HeldScheduler, int]]:
    """Serve a scheduler in which nothing happens; give it and its port."""
    scheduler = HeldScheduler.of(folder)
    with run(build(Settings(), scheduler, keep_alive=0.02)) as address:
        yield scheduler, int(address.rpartition(":")[2])


def within(seconds: float, condition: Callable[[], bool]) -> float:
    """Wait until a condition holds, and return how long it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds
        time.sleep(0.001)
    return time.monotonic() - begin


def send(port: int, body: str, path: str = "/v1/completions") -> socket.socket:
    """Send a request and read nothing."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=5)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body.encode())
    return connection


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_connection_that_ends_cancels_its_job_at_once_s21_s24(held: Any, body: str, reset: bool) -> None:
    scheduler, port = held
    connection = send(port, body)
    within(5, lambda: len(scheduler.streams) == 1)
    if body == STREAM:
        assert b"200 OK" in connection.recv(1000)
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    connection.close()
    within(2, lambda: scheduler.streams[0].cancelled)
    assert scheduler.load().running == 0


def test_a_hundred_clients_that_vanish_leave_nothing_behind_s25_s26(held: Any) -> None:
    scheduler, port = held
    chance = random.Random(3)
    open_ones: list[socket.socket] = []
    for _ in range(100):
        open_ones.append(send(port, chance.choice([BODY, STREAM])))
        if chance.random() < 0.7:
            open_ones.pop(chance.randrange(len(open_ones))).close()
    for one in open_ones:
        one.close()
    within(10, lambda: scheduler.load().running == 0 and len(scheduler.streams) > 30)
    assert httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200


def test_a_body_over_the_limit_is_answered_while_it_is_still_sent_s7(folder: Path) -> None:
    with run(build(Settings(max_body=1000), HeldScheduler.of(folder))) as address:
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=5)
        connection.putrequest("POST", "/v1/completions")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(10**9))
        connection.endheaders(b"{")  # the rest never comes
        answer = connection.getresponse()
        assert answer.status == 413
        assert json.load(answer)["error"]["param"] is None
        connection.close()
