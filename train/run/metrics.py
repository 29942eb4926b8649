"""The metrics of a run: one JSON object per line in metrics.jsonl, and the same in the configured trackers."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...contract.files import cannot_write, write_whole
from ..config.run_config import RunConfig
from .differences import flatten
from .trackers import Start, Trackers

KEYS = (
    "step",
    "loss",
    "val_loss",
    "bits_per_byte",
    "experts_per_token",
    "layers_per_token",
    "tokens_per_second",
    "grad_norm",
    "seconds",
    "lr",
)
"""Keys of every record, null if not measured. `loss` is the step's cross-entropy, `seconds` are those of training."""


class Metrics:
    """Appends records to `folder`/metrics.jsonl, and hands them to `trackers`."""

    def __init__(self, folder: Path, step: int, trackers: Trackers | None = None) -> None:
        """Open the file; drop the records after `step`, from which the run resumes, since those steps are lost."""
        self.path = folder / "metrics.jsonl"
        lines = [json.dumps(record) + "\n" for record in read_metrics(self.path) if record["step"] <= step]
        write_whole(self.path, "".join(lines))
        self._file = self.path.open("a", encoding="utf-8")
        self._trackers = trackers

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one record; a number that is not finite becomes null, since JSON has none."""
        full = {key: finite(record.get(key)) for key in [*KEYS, *(k for k in record if k not in KEYS)]}
        self._file.write(json.dumps(full, allow_nan=False) + "\n")
        self._file.flush()
        if self._trackers is not None:
            self._trackers.log(full)

    def close(self) -> None:
        """Close the file and the trackers."""
        self._file.close()
        if self._trackers is not None:
            self._trackers.close()


def open_metrics(
    folder: Path, config: RunConfig, step: int, libraries: Mapping[str, Any], log: Callable[[str], None]
) -> Metrics:
    """Open the metrics of a training that resumes from `step`, and the trackers whose `libraries` are loaded.

    Raises:
        UserError: the run's folder cannot be written.
    """
    start = Start(folder, folder.name, flatten(config.model_dump(mode="json")), step)
    try:
        return Metrics(folder, step, Trackers(libraries, start, log))
    except OSError as error:
        raise cannot_write(folder / "metrics.jsonl", error) from error


def finite(value: Any) -> Any:
    """Return the value, or None for a float that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the records of a metrics.jsonl; a line that a kill cut short is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records
