"""The number of nodes that ONNX Runtime runs for one decoded token, counted in its own profile."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...contract.file_names import GRAPH
from ..execution.batch import Batch
from ..generation.engine import Engine
from ..ops.library import load_library


def nodes_per_token(engine: Engine, folder: Path) -> int:
    """Count the nodes of one decode step at the thresholds of training.

    Nodes in the branches that run count, and so does each `If` itself. Loading the graph again takes most of the time.

    Args:
        engine: The model.
        folder: Its folder.
    """
    import onnxruntime  # takes 90 ms, which `--help` should not pay

    session, manifest = engine.session, engine.manifest
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_profiling = True
    graph = GRAPH if session.target == "portable" else manifest.targets[session.target].graph
    if session.kernel is not None:
        load_library().register(options)
    with tempfile.TemporaryDirectory(prefix="adaptive-profile-") as place:
        options.profile_file_prefix = str(Path(place) / "token")
        profiled = onnxruntime.InferenceSession(str(folder / graph), options, providers=list(session.device.providers))
        Batch(replace(session.graph, session=profiled), capacity=1).join().step(0)
        profile = Path(profiled.end_profiling())
        return count(json.loads(profile.read_bytes()))


def count(events: list[dict[str, Any]]) -> int:
    """Count the kernels in a profile of ONNX Runtime."""
    return sum(event.get("cat") == "Node" and event["name"].endswith("_kernel_time") for event in events)
