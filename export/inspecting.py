"""`adaptive inspect` of a checkpoint: the graph that export would write of it, read and thrown away.

One way to count serves models and runs. The parity check of an export is left out: it takes longer than the reading,
and says nothing new of a graph that nobody keeps.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from ..runtime.inspection.inspect import Inspection, InspectParams, inspect_model
from .package import write_files
from .source import find, read


def inspect_checkpoint(
    wanted: str, which: str, params: InspectParams, *, device: str = "auto", threads: int | None = None
) -> Inspection:
    """Reads a text with checkpoint `which` (best, last or a step) of the run `wanted`, or with the one at that path.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or it has nothing to inspect.
    """
    source = read(find(wanted, which))
    checkpoint = source.checkpoint
    with tempfile.TemporaryDirectory(prefix="adaptive-inspect-") as folder:
        model = Path(folder) / "model"
        model.mkdir()
        write_files(source, model, "fp32").write(model)
        found = inspect_model(model, params, run=checkpoint.run, device=device, threads=threads, verify=False)
    return replace(found, model=f"{checkpoint.run} at step {checkpoint.step}")
