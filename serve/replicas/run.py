"""Run the server on Ray until a signal: on the cluster of `RAY_ADDRESS`, else on this machine."""

import os
import signal
import threading
from typing import Any

import click
import ray
from ray import serve

from ...contract.errors import EXIT_INTERRUPTED
from ..scheduler.open import open_scheduler
from ..settings import Settings
from .amount import Replicas
from .deployment import NAME, deployment


def run(settings: Settings, replicas: Replicas) -> int:
    """Serve until SIGTERM or Ctrl-C, drain, and return the exit code.

    Raises:
        UserError: A model is missing; looked at here, because a replica would be started again and again.
    """
    open_scheduler(settings)
    ended: list[int] = []
    stop = threading.Event()

    def end(number: int, _: object) -> None:
        ended.append(number)
        stop.set()

    ray.init(
        address=os.environ.get("RAY_ADDRESS"), include_dashboard=False, log_to_driver=True, configure_logging=False
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # after Ray set its own
        signal.signal(number, end)
    try:
        serve.start(http_options={"host": settings.host, "port": settings.port}, proxy_location="EveryNode")
        serve.run(deployment(settings, replicas), name=NAME, route_prefix="/")
        click.echo(f"serving at http://{settings.host}:{settings.port} ({replicas.least} to {replicas.most} replicas)")
        stop.wait()
    finally:
        untyped: Any = serve
        untyped.shutdown()  # waits for the requests in progress, at most --shutdown-timeout
        ray.shutdown()
    return EXIT_INTERRUPTED if ended[:1] == [signal.SIGINT] else 0
