"""What stands on the ranks that write nothing in the place of what writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..config.run_config import RunConfig
from ..parallel.world import World
from ..system.progress import Progress
from .best import Score
from .folder import Run
from .metrics import Metrics
from .saver import Saver


class QuietMetrics(Metrics):
    """Measures go to no file."""

    def __init__(self) -> None:
        """There is nothing to open."""

    def write(self, record: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class QuietSaver(Saver):
    """Knows which steps the first rank has saved."""

    def __init__(self, saved: Sequence[int], seconds: float) -> None:
        self.saved, self.seconds = list(saved), seconds
        self.best = None

    def save(self, step: int, *_: Any) -> None:
        self.saved.append(step)

    def has(self, step: int) -> bool:
        return step in self.saved

    def expected_seconds(self) -> float:
        return self.seconds

    def record(self) -> dict[str, Any]:
        return {}

    def check(self) -> None:
        pass

    def wait(self) -> None:
        pass

    def offer(self, score: Score | None) -> None:
        pass


def saver_of(
    config: RunConfig, run: Run, display: Progress, saved: Sequence[int], seconds: float, world: World
) -> Saver:
    """What saves on the first rank, and what only knows of it on the others; arguments as of `Saver`."""
    return Saver(config, run, display, saved, seconds) if world.is_first else QuietSaver(saved, seconds)
