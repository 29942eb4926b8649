"""What runs in the process of one replica: the application with a scheduler of its own. Imports no Ray."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ..application.build import build
from ..application.table import ENDPOINTS
from ..observe.logs import configure_logs
from ..observe.telemetry import Telemetry
from ..scheduler.local import LocalScheduler
from ..scheduler.open import open_scheduler
from ..settings import Settings

SWITCH_SECONDS = 0.001
_running: list[LocalScheduler] = []


def replica_app(settings: Settings) -> Any:
    """Build the application; its lifespan loads the models before Ray sends a request, and drains at the end."""
    configure_logs("info", "json")
    sys.setswitchinterval(SWITCH_SECONDS)
    telemetry = Telemetry([one.path for one in ENDPOINTS])
    scheduler = open_scheduler(settings, telemetry)
    _running.append(scheduler)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        await scheduler.start()
        await scheduler.ready()
        try:
            yield
        finally:
            if not await scheduler.drain(settings.shutdown_timeout):
                scheduler.abort()
            await scheduler.close()
            telemetry.close()

    return build(settings, scheduler, routes=telemetry.routes(), middleware=[telemetry.middleware], lifespan=lifespan)


def check() -> None:
    """Raise if the engine of this replica stopped, so that Ray replaces the replica."""
    if any(scheduler.status == "failed" for scheduler in _running):
        raise RuntimeError("the engine stopped")
