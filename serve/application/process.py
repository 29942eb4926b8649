"""The life of a server process: it listens, loads, serves, drains and ends."""

import asyncio
import errno
import gc
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import uvicorn

from ...contract.errors import EXIT_INTERRUPTED, UserError
from ..observe.telemetry import Telemetry
from ..page.routes import page_routes
from ..scheduler.local import LocalScheduler
from ..scheduler.open import open_scheduler
from ..settings import Settings
from .build import build
from .connection import Connection
from .table import ENDPOINTS

MOST_HEADER_BYTES = 32 * 1024
IDLE_SECONDS = 10
"""Time that a connection may wait for its next request."""
FLUSH_SECONDS = 5
"""Time for the ends of answers to reach their clients, after the last token."""
SWITCH_SECONDS = 0.001
"""Most time that the event loop computes while an engine waits for the interpreter; Python's 0.005 would add as much
between two tokens."""


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """Open the socket before anything is loaded, so that a port in use is reported at once.

    Raises:
        UserError: The address is not one of this machine, or the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UserError(
            f"found --host {host}, expected an address or a name of this machine such as 127.0.0.1 or 0.0.0.0 "
            f"({error.strerror})"
        ) from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(2048)  # here: two servers may bind one port as long as none listens
        except OSError as error:
            raise UserError(_bind_message(host, port, error)) from error
        yield listener
    finally:
        listener.close()


def _bind_message(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} at {host} is in use, expected a free one; stop what uses it, or type: --port {port + 1}"
    if error.errno == errno.EACCES:
        return f"port {port} needs the rights of root, expected one from 1024 on; type: --port 8000"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"found --host {host}, which is no address of this machine; type: --host 127.0.0.1 or --host 0.0.0.0"
    return f"cannot listen at {host}, port {port}: {error.strerror}; choose others with --host and --port"


class Server(uvicorn.Server):
    """uvicorn, with signals left to `run`: it would close the port at once, and clients could not be told."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


class Signals:
    """SIGTERM and Ctrl-C: the first asks the server to end, the second to end at once."""

    def __init__(self) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()
        self.number: int | None = None
        """The first signal."""

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch the signals inside the block."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._catch, number)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _catch(self, number: int) -> None:
        if self.first.is_set():
            self.second.set()
        self.number = self.number or number
        self.first.set()


async def run(settings: Settings, listener: socket.socket) -> int:
    """Serve until a signal or a failure; return the exit code.

    Raises:
        UserError: A model is missing or does not open.
    """
    begin = time.perf_counter()
    sys.setswitchinterval(SWITCH_SECONDS)
    telemetry = Telemetry([one.path for one in ENDPOINTS])
    scheduler = open_scheduler(settings, telemetry)
    app = build(settings, scheduler, pages=page_routes(), routes=telemetry.routes(), middleware=[telemetry.middleware])
    server = Server(
        uvicorn.Config(
            app, http=Connection, lifespan="off", ws="none", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, timeout_keep_alive=IDLE_SECONDS,
            h11_max_incomplete_event_size=MOST_HEADER_BYTES, timeout_graceful_shutdown=FLUSH_SECONDS,
        )
    )  # fmt: skip
    signals = Signals()
    with signals.caught():
        await scheduler.start()
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        ready = asyncio.create_task(scheduler.ready())
        ends: set[asyncio.Task[Any]] = {
            asyncio.create_task(scheduler.failure()), asyncio.create_task(signals.first.wait()), serving,
        }  # fmt: skip
        try:
            await asyncio.wait({ready, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done() and ready.exception() is None:
                freeze_heap()
                _announce(scheduler, listener, time.perf_counter() - begin)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            code = await _end(settings, scheduler, server, signals)
        finally:
            server.should_exit = True
            await serving
            await scheduler.close()
            telemetry.close()
            for task in (ready, *ends):
                task.cancel()
    return code


def freeze_heap() -> None:
    """Leave what the program and its models hold out of later garbage collections.

    A full collection passes over their 70,000 objects, 37 ms in which no text gets a token.
    """
    gc.collect()
    gc.freeze()


async def _end(settings: Settings, scheduler: LocalScheduler, server: Server, signals: Signals) -> int:
    """Let the requests end, and return the exit code.

    Raises:
        UserError: A model did not open.
    """
    if scheduler.status == "failed":
        error = await scheduler.failure()
        if isinstance(error, UserError):
            raise error
        click.echo(f"error: the engine stopped ({type(error).__name__}: {error}); start the server again", err=True)
        return 1
    load = scheduler.load()
    requests = load.running + load.waiting
    if requests:
        click.echo(f"ending: {requests} requests have {settings.shutdown_timeout:g} s; again to end them now", err=True)
    drain = asyncio.create_task(scheduler.drain(settings.shutdown_timeout))
    second = asyncio.create_task(signals.second.wait())
    await asyncio.wait({drain, second}, return_when=asyncio.FIRST_COMPLETED)
    all_ended = drain.done() and drain.result()
    for task in (drain, second):
        task.cancel()
    if not all_ended:
        scheduler.abort()
        server.config.timeout_graceful_shutdown = 1  # for the errors that say so
    if signals.number == signal.SIGINT:
        return EXIT_INTERRUPTED
    return 0 if all_ended else 1


def _announce(scheduler: LocalScheduler, listener: socket.socket, seconds: float) -> None:
    host, port = listener.getsockname()[:2]
    names = ", ".join(info.name for info in scheduler.models())
    address = f"[{host}]" if ":" in host else host
    click.echo(f"serving {names} at http://{address}:{port} (ready in {seconds:.1f} s)")
    sys.stdout.flush()
