"""The server as an application of Ray Serve: Ray starts, replaces, drains and counts the replicas.

A replica is a whole server with a queue of its own, so the dial still gives way under load. Ray gives a request to the
replica with fewer in progress, and starts another as more are in progress than replicas have slots.
"""

import os
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is imported: it would report to its makers

from ray import serve

from ..settings import Settings
from .amount import Replicas
from .replica import check, replica_app

NAME = "adaptive"


def deployment(settings: Settings, replicas: Replicas) -> Any:
    """Return the application for `serve.run`. The settings, keys included, travel through Ray's control store."""

    def app() -> Any:
        return replica_app(settings)

    class Replica:
        """What Ray calls besides the application."""

        def check_health(self) -> None:
            """Raise if the engine stopped."""
            check()

    options = serve.deployment(
        name=NAME,
        autoscaling_config={
            "min_replicas": replicas.least,
            "max_replicas": replicas.most,
            "target_ongoing_requests": settings.max_batch,
        },
        # More than a replica queues, so that it is the replica that refuses, with 429 and Retry-After.
        max_ongoing_requests=settings.max_batch + settings.max_queue + 16,
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        graceful_shutdown_timeout_s=settings.shutdown_timeout,
        health_check_period_s=2,
        health_check_timeout_s=30,
    )
    return options(serve.ingress(app)(Replica)).bind()
