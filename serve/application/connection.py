"""One connection to a client, with a limit on the time in which a request has to arrive."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

ARRIVAL_SECONDS = 30.0
"""Time from the first byte of a request, or from the connection, to the last byte of its body."""


class Connection(H11Protocol):
    """uvicorn's connection, which is closed when a request does not arrive in time.

    uvicorn itself waits for ever for the end of headers or of a body, so that some hundred clients that send a byte now
    and then would hold all the connections of a process.
    """

    _arrival: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._limit_arrival()

    def data_received(self, data: bytes) -> None:
        """Take bytes; wait for the rest of a request, if any is missing."""
        super().data_received(data)
        self._limit_arrival()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop to wait."""
        super().connection_lost(exc)
        self._stop_waiting()

    def _limit_arrival(self) -> None:
        arriving = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        if not arriving:
            self._stop_waiting()
        elif self._arrival is None:
            self._arrival = self.loop.call_later(ARRIVAL_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _give_up(self) -> None:
        self._arrival = None
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.transport.is_closing():
            self.transport.close()
