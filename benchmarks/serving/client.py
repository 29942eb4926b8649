"""A client of the benchmark `serve` that takes little time itself: plain asyncio, one connection per request.

A library for HTTP takes as long for a chunk as a small model for a token, on the cores that the server needs.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

HOST = "127.0.0.1"
MOST_WAIT = 120.0
"""Seconds after which an answer that does not come is an error."""


@dataclass
class Answer:
    """What came back for one request, and when."""

    sent: float
    status: int = 0
    times: list[float] = field(default_factory=list)
    """When each event of the stream came; the mark `[DONE]` is left out."""
    text: str = ""
    finish: str | None = None
    """The reason of the end; None where it did not come."""
    usage: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def seconds(self) -> float:
        """From sending to the last event."""
        return self.times[-1] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between events."""
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]


async def complete(port: int, body: dict[str, Any], leave_after: int | None = None) -> Answer:
    """Stream a completion; with `leave_after` close the connection after this many events.

    Raises:
        TimeoutError: Nothing came for two minutes.
    """
    content = json.dumps({**body, "stream": True}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {HOST}:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    answer = Answer(time.perf_counter())
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(head.encode() + content)
        answer.status = int((await _line(reader)).split()[1])
        while (await _line(reader)).strip():
            pass  # the other fields of the head
        if answer.status != 200:
            answer.error = (await asyncio.wait_for(reader.read(), MOST_WAIT)).decode(errors="replace")
            return answer
        while line := await _line(reader):  # lines of chunk sizes lie between those of events
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            _take(answer, json.loads(line[len(b"data: ") :]))
            if leave_after is not None and len(answer.times) >= leave_after:
                break
    finally:
        writer.close()
    return answer


async def _line(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.readline(), MOST_WAIT)


def _take(answer: Answer, event: dict[str, Any]) -> None:
    choices = event.get("choices") or []
    if choices:
        answer.times.append(time.perf_counter())
        answer.text += choices[0].get("text") or ""
        answer.finish = choices[0].get("finish_reason") or answer.finish
    answer.usage = event.get("usage") or answer.usage
    if "error" in event:
        answer.error = str(event["error"])


async def get(port: int, path: str) -> tuple[int, str]:
    """Return status and body of a GET."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (
            (await asyncio.wait_for(reader.read(), MOST_WAIT)).decode(errors="replace").partition("\r\n\r\n")
        )
    finally:
        writer.close()
    return int(head.split()[1]), body
