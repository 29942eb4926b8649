"""The interfaces through which the trainer saves and logs, and null objects for the ranks that write nothing."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from torch import Tensor

from ...config.run_config import RunConfig
from ...parallel.world import World
from ...system.progress import Progress
from ..checkpoints.best import Score
from ..checkpoints.saver import Saver
from ..folder import Run


class MetricsLog(Protocol):
    """The log of the trainer: `Metrics` on the first rank, `NullMetrics` on the others."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Log one record."""

    def close(self) -> None:
        """Close the log; nothing is written after."""


class CheckpointSaver(Protocol):
    """The saver of the trainer: `Saver` on the first rank, `NullSaver` on the others. See `Saver`."""

    seconds: float
    """Seconds that the last save took."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def has(self, step: int) -> bool:
        """Return whether the checkpoint of `step` is written or being written."""

    def expected_seconds(self) -> float:
        """Return the seconds until a save begun now would be on the disk."""

    def save(
        self,
        step: int,
        model_state: Mapping[str, Tensor],
        optimizer_state: Mapping[str, Tensor],
        state: Mapping[str, Any],
        scored: Score | None,
    ) -> None:
        """Write the checkpoint of `step`, or begin to."""

    def record(self) -> dict[str, Any]:
        """Return how long the last save took, for metrics.jsonl; each save once."""

    def check(self) -> None:
        """Raise the error of a failed save in the background, once."""

    def wait(self) -> None:
        """Wait for the save in flight."""

    def offer(self, score: Score | None) -> None:
        """Point at a saved checkpoint if none is better."""


class NullMetrics:
    """Metrics of a rank that logs nothing."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class NullSaver:
    """Saver of a rank that writes nothing, but knows which steps the first rank has saved."""

    def __init__(self, saved: Sequence[int], seconds: float) -> None:
        self.saved, self.seconds = list(saved), seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def has(self, step: int) -> bool:
        """Return whether the first rank has saved `step`."""
        return step in self.saved

    def expected_seconds(self) -> float:
        """Return the estimate that it was given."""
        return self.seconds

    def save(
        self,
        step: int,
        model_state: Mapping[str, Tensor],
        optimizer_state: Mapping[str, Tensor],
        state: Mapping[str, Any],
        scored: Score | None,
    ) -> None:
        """Note the step."""
        self.saved.append(step)

    def record(self) -> dict[str, Any]:
        """Return nothing to log."""
        return {}

    def check(self) -> None:
        """Do nothing."""

    def wait(self) -> None:
        """Do nothing."""

    def offer(self, score: Score | None) -> None:
        """Do nothing."""


def saver_of(
    config: RunConfig, run: Run, display: Progress, saved: Sequence[int], seconds: float, world: World
) -> CheckpointSaver:
    """Make the saver of this rank; arguments as of `Saver`."""
    return Saver(config, run, display, saved, seconds) if world.is_first else NullSaver(saved, seconds)
