"""Inspect a checkpoint by exporting it to a temporary folder.

The same code then counts the routes of checkpoints and of exported models. The check of an export is left out: it takes
longer than the inspection, and the graph is deleted afterwards.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

from ..runtime.inspection.inspect import InspectParams, inspect_model
from ..runtime.inspection.inspection import Inspection
from ..train.run.find import find
from .package import write_files
from .source import read


def inspect_checkpoint(
    name: str, which: str, params: InspectParams, *, device: str = "auto", threads: int | None = None
) -> Inspection:
    """Read a text with a checkpoint and count the routes of its tokens.

    Args:
        name: Name or path of a run, or path of a checkpoint.
        which: Which checkpoint of a run: `best`, `last`, or a step.
        params: The text, and how to count.
        device: Where ONNX Runtime runs the graph.
        threads: Number of its threads; None chooses.

    Raises:
        UserError: There is no such checkpoint, it is damaged, or it has nothing to inspect.
    """
    source = read(find(name, which))
    checkpoint = source.checkpoint
    with tempfile.TemporaryDirectory(prefix="adaptive-inspect-") as folder:
        model = Path(folder) / "model"
        model.mkdir()
        write_files(source, model).write(model)
        inspection = inspect_model(model, params, run=checkpoint.run, device=device, threads=threads, verify=False)
    return replace(inspection, model=f"{checkpoint.run} at step {checkpoint.step}")
