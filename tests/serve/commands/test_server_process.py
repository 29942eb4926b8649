"""The life of a server: ready, draining, ended; as a process on loopback."""

import contextlib
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable

import httpx
import pytest

from .conftest import Process, until

SLOW = """
import time
from adaptive_lm.runtime.execution.batch import Batch
run = Batch.run
Batch.run = lambda self, work: (time.sleep(0.02), run(self, work))[1]
"""
BROKEN = """
from adaptive_lm.runtime.execution.batch import Batch
def stop(self, work):
    raise SystemExit("of this test")
Batch.run = stop
"""
IMPATIENT = """
from adaptive_lm.serve.application import connection
connection.ARRIVAL_SECONDS = 0.5
"""
COUNTED = """
import atexit, gc, sys
atexit.register(lambda: print("frozen:", gc.get_freeze_count(), file=sys.stderr))
"""
BODY = {"model": "demo", "prompt": "hello", "max_tokens": 60, "temperature": 0, "stream": True}
Serve = Callable[..., Process]


class Reader(threading.Thread):
    """A client that reads one streamed answer."""

    def __init__(self, server: Process) -> None:
        super().__init__(daemon=True)
        self.server, self.lines, self.error = server, list[str](), ""
        self.start()

    def run(self) -> None:
        try:
            with self.server.client() as client, client.stream("POST", "/v1/completions", json=BODY) as response:
                for line in response.iter_lines():
                    if line:
                        self.lines.append(line)
        except httpx.HTTPError as error:
            self.error = repr(error)


def test_what_a_ready_server_holds_is_left_out_of_garbage_collections(serve: Serve) -> None:
    server = serve(before=COUNTED)
    server.signal()
    code, errors = server.end()
    assert code == 0, errors
    assert int(errors.partition("frozen: ")[2].split()[0]) > 30_000


def test_a_server_says_where_it_is_answers_and_ends_with_0(serve: Serve) -> None:
    """S40, S41: idle."""
    begin = time.monotonic()
    server = serve("--log-level", "warning", "--log-format", "plain")
    assert server.line.startswith("serving demo at http://127.0.0.1:"), server.line
    assert time.monotonic() - begin < 10
    with server.client() as client:
        assert client.get("/health/ready").status_code == 200
        answer = client.post("/v1/completions", json=BODY | {"stream": False, "max_tokens": 5}).json()
        assert answer["usage"]["completion_tokens"] == 5
        assert "<html" in client.get("/").text
        assert "server" not in client.get("/health/live").headers
        assert client.get("/health/live", headers={"x-long": "x" * 200_000}).status_code in (400, 431)
    server.signal()
    code, errors = server.end()
    assert code == 0
    assert re.fullmatch(r"\S+ warning Invalid HTTP request received\.\n", errors)


def test_after_sigterm_running_requests_end_and_new_ones_are_told_to_go_elsewhere(serve: Serve) -> None:
    """S41."""
    server = serve(before=SLOW)
    reader = Reader(server)
    until(lambda: len(reader.lines) > 3)
    server.signal()
    with server.client() as client:
        until(lambda: client.get("/health/ready").status_code == 503)
        assert client.get("/health/live").status_code == 200
        refused = client.post("/v1/completions", json=BODY)
    assert refused.status_code == 503
    assert refused.headers["connection"] == "close"
    assert "stops" in refused.json()["error"]["message"]
    code, errors = server.end()
    assert code == 0
    assert "ending: 1 requests have 30 s" in errors
    reader.join(5)
    assert reader.lines[-1] == "data: [DONE]"
    assert len(reader.lines) > 50


@pytest.mark.parametrize(
    ("options", "signals"), [((), 2), (("--shutdown-timeout", "0"), 1)], ids=["second", "timeout 0"]
)
def test_a_second_sigterm_or_a_timeout_of_0_ends_requests_at_once_and_they_are_told(
    serve: Serve, options: tuple[str, ...], signals: int
) -> None:
    """S41: in less than 4 seconds."""
    server = serve(*options, before=SLOW.replace("0.02", "0.1"))
    reader = Reader(server)
    until(lambda: len(reader.lines) > 1)
    begin = time.monotonic()
    for _ in range(signals):
        server.signal()
        time.sleep(0.2)
    code, _ = server.end()
    assert time.monotonic() - begin < 4
    assert code == 1
    reader.join(5)
    assert "the server stops" in json.loads(reader.lines[-1].removeprefix("data: "))["error"]["message"]


def test_ctrl_c_ends_the_server_with_130(serve: Serve) -> None:
    server = serve()
    server.signal(signal.SIGINT)
    code, errors = server.end()
    assert code == 130
    assert "Traceback" not in errors


def test_an_engine_that_stops_ends_the_process_with_an_error(serve: Serve) -> None:
    """S43."""
    server = serve(before=BROKEN)
    with server.client() as client:
        answer = client.post("/v1/completions", json=BODY | {"stream": False})
    assert answer.status_code == 500
    assert "of this test" not in answer.text
    code, errors = server.end()
    assert code == 1
    assert "error: the engine stopped (SystemExit: of this test); start the server again" in errors


def test_clients_that_send_nothing_or_drop_by_drop_hold_no_connection_and_delay_no_other_client(serve: Serve) -> None:
    """S33."""
    server = serve(before=IMPATIENT)
    host, port = server.url.removeprefix("http://").split(":")
    idle = [socket.create_connection((host, int(port)), timeout=10) for _ in range(100)]
    for one in idle[50:]:
        one.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    for one in idle[90:]:
        one.sendall(b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    with server.client() as client:
        for _ in range(3):
            assert client.get("/health/ready").status_code == 200
            time.sleep(0.3)
        assert client.get("/health/ready").status_code == 200
    assert [one.recv(100) for one in idle] == [b""] * 100, "closed by the server"
    for one in idle:
        one.close()
    server.signal()
    assert server.end()[0] == 0


def test_clients_that_vanish_in_the_middle_free_their_slots(serve: Serve) -> None:
    """S21 and S24 over sockets: with a stream and without."""
    server = serve("--max-batch", "2", "--max-queue", "50", before=SLOW.replace("0.02", "0.005"))
    with httpx.Client(base_url=server.url, timeout=0.05) as client:
        for number in range(20):
            with contextlib.suppress(httpx.TimeoutException):
                client.post("/v1/completions", json=BODY | {"stream": number % 2 == 0, "max_tokens": 90})
    with server.client() as client:
        begin = time.monotonic()
        answer = client.post("/v1/completions", json=BODY | {"stream": False, "max_tokens": 5})
        assert answer.status_code == 200
        assert time.monotonic() - begin < 5
        until(lambda: client.get("/props").json()["load"]["running"] == 0)
    server.signal()
    assert server.end()[0] == 0
