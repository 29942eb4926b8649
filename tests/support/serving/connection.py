"""One HTTP request that a test drives by hand."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any


class Connection:
    """One HTTP request to an application, driven by hand: the client leaves when `leave` is called."""

    def __init__(self, app: Any, path: str, body: dict[str, Any], headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.sent: list[dict[str, Any]] = []
        self._gone = asyncio.Event()
        self._body: bytes | None = json.dumps(body).encode()
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "client": ("1.2.3.4", 5),
            "server": ("127.0.0.1", 80), "headers": [(b"content-type", b"application/json"), *headers], "state": {},
        }  # fmt: skip
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    @property
    def text(self) -> str:
        """The body that was sent so far."""
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    def leave(self) -> None:
        """Close the connection from the client's side."""
        self._gone.set()
