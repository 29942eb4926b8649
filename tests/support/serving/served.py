"""The server's application in this process, on the tiny model."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from adaptive_lm.serve.application.build import build
from adaptive_lm.serve.scheduler.job import Scheduler
from adaptive_lm.serve.scheduler.open import open_scheduler
from adaptive_lm.serve.settings import Settings

from .lifespan import lifespan_of

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


@contextmanager
def served(
    folder: Path, *, wrap: Callable[[Scheduler], Scheduler] = lambda one: one, keep_alive: float = 10.0, **settings: Any
) -> Iterator[TestClient]:
    """Serve the model in `folder`, and give a client of the application."""
    options = Settings(models=(str(folder),), device="cpu", threads=1, **settings)
    scheduler = open_scheduler(options)

    app = build(options, wrap(scheduler), lifespan=lifespan_of(scheduler), keep_alive=keep_alive)
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def events(text: str) -> list[dict[str, Any]]:
    """Read the data of an event stream; the mark `[DONE]` is left out."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]
