"""One part of the GPU benchmark: what it was asked for, and how it reports.

A part runs in a process of its own and prints its results as JSON, one line each time that they grow; the last line
counts. So a part that fails or is stopped still gives what it had measured.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


@dataclass
class Part:
    """A part at work."""

    device: str
    """"cuda" or "cpu"."""
    small: bool
    """Whether models and texts are tiny, to try the script itself."""
    seconds: float
    """Seconds that the part may take."""
    work: Path
    """Folder for its files."""
    data: str
    """Text to train on."""
    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    facts: Row = field(default_factory=dict)
    """Figures that belong to the part, not to a row."""
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def from_arguments(cls) -> "Part":
        """Return the part that the command line asks for."""
        asked = json.loads(sys.argv[1])
        part = cls(asked["device"], asked["small"], asked["seconds"], Path(asked["work"]), asked["data"])
        part.work.mkdir(parents=True, exist_ok=True)
        if part.device == "cuda":
            # float32 means 24 bits in every product here, for us and for peers; bf16 and fp16 are the fast precisions
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        return part

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.began + self.seconds - time.monotonic()

    def say(self, line: str) -> None:
        """Tell the user what happens now."""
        print(f"  {line}", file=sys.stderr, flush=True)

    def add(self, **row: Any) -> None:
        """Add a row of results."""
        self.rows.append(row)
        self.print()

    def attempt(self, what: str, function: Callable[[], None]) -> bool:
        """Call a function; after an error note it, and go on. Return whether it succeeded."""
        self.say(what)
        try:
            function()
        except Exception as error:
            traceback.print_exc(limit=-4)
            first = next(iter(str(error).splitlines()), "")
            self.failures.append(f"{what}: {type(error).__name__}: {first}"[:300])
            self.print()
            return False
        self.print()
        return True

    def print(self) -> None:
        """Print everything so far."""
        print(json.dumps({"rows": self.rows, "failures": self.failures, "facts": self.facts}), flush=True)

    def synchronize(self) -> None:
        """Wait until the GPU has done all that was queued, so that a clock measures work and not its queueing."""
        if self.device == "cuda":
            torch.cuda.synchronize()
