"""The command line, as the benchmarks call it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def adaptive(*arguments: str, folder: Path, core: int | None = None, more: Mapping[str, str] | None = None) -> str:
    """Run `adaptive` on one thread in `folder`, pinned to a core, with `more` in its environment; return its stdout.

    Raises:
        RuntimeError: The command failed; the message ends with its output.
    """
    command = [sys.executable, "-m", "adaptive_lm.serve", *arguments]
    if core is not None:
        command = ["taskset", "-c", str(core), *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **(more or {})}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr[-3000:]}")
    return done.stdout


def settings(values: Mapping[str, Any]) -> list[str]:
    """Return the options of `adaptive train` that set `values`."""
    return [part for key, value in values.items() for part in ("--set", f"{key}={json.dumps(value)}")]
