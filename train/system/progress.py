"""Progress of a run on stderr: one live line in a terminal, elsewhere a plain line every few seconds."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

PLAIN_SECONDS = 5.0
REFRESHES_PER_SECOND = 8


class Progress:
    """Shows the newest record on stderr, and log lines above it."""

    def __init__(self, console: Console | None = None, plain_seconds: float = PLAIN_SECONDS) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._plain_seconds = plain_seconds
        self._shown = float("-inf")
        self._worked = time.monotonic()  # a short preparation logs nothing
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def log(self, text: str) -> None:
        """Print one line; a live line stays below it."""
        self.console.print(text, markup=False, soft_wrap=True)

    def work(self, what: str, done: int, total: int) -> None:
        """Log every few seconds which part of a long preparation is done."""
        if time.monotonic() - self._worked >= self._plain_seconds:
            self._worked = time.monotonic()
            self.log(f"{what}: {done / max(total, 1):.0%}")

    def show(self, record: Mapping[str, Any], end: str, left: float | None, force: bool = False) -> None:
        """Show the newest record.

        Args:
            record: an object of metrics.jsonl.
            end: what the step counts towards, as "/1000".
            left: seconds to go, if known.
            force: show it now, however recent the last one is.
        """
        pause = 1 / REFRESHES_PER_SECOND if self._live is not None else self._plain_seconds
        if time.monotonic() - self._shown < pause and not force:
            return
        self._shown = time.monotonic()
        text = line(record, end, left)
        if self._live is not None:
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            self.console.print(text, markup=False, soft_wrap=True)


def line(record: Mapping[str, Any], end: str, left: float | None) -> str:
    """Format a record.

    `step 120/1000  loss 2.310  val 2.401  12.3k tokens/s  experts 1.58  layers 4.00  grad 0.81  1:23 left`
    """
    parts = [f"step {record['step']}{end}"]
    for key, label, form in (
        ("loss", "loss", ".3f"),
        ("val_loss", "val", ".3f"),
        ("tokens_per_second", "", ""),
        ("experts_per_token", "experts", ".2f"),
        ("layers_per_token", "layers", ".2f"),
        ("grad_norm", "grad", ".2f"),
    ):
        value = record.get(key)
        if value is not None:
            parts.append(f"{rate(value)} tokens/s" if key == "tokens_per_second" else f"{label} {value:{form}}")
    if left is not None:
        parts.append(f"{duration(left)} left")
    return "  ".join(parts)


def rate(per_second: float) -> str:
    """Format a rate: 12345.0 as `12.3k`."""
    return f"{per_second / 1000:.1f}k" if per_second >= 1000 else f"{per_second:.0f}"


def duration(seconds: float) -> str:
    """Format a duration in seconds: 83.4 as `1:23`, 4000 as `1:06:40`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
