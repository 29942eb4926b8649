"""Prove by ONNX Runtime's profile of decoded tokens that what a token did not choose was not executed.

L layers, E experts, H heads.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ...contract.file_names import GRAPH
from ...runtime.dial import Thresholds
from ...runtime.execution.batch import Batch
from ...runtime.execution.graph import Graph
from ...runtime.execution.usage.cost import Meter
from ...runtime.format.manifest import Manifest
from ...train.model import ThresholdTensors
from ..graph.builder import Array

EXPERT = re.compile(r"layers\.(\d+)/(?:run/)?moe/(gate_up|up|down)\.(\d+)$")
HEAD = re.compile(r"layers\.(\d+)/(?:run/)?attention/([qo])\.(\d+)$")
LAYER = re.compile(r"layers\.(\d+)/(?:run/)?(?:attention/(?:Attention|cope/gates)|mixer/o)$")


@dataclass(frozen=True)
class Executed:
    """The work that the profile of one pass shows."""

    rows: Array  # (L, 2, E): rows that gate_up and down of each expert multiplied
    head_rows: Array  # (L, 2, H): rows that the slices of q and o of each head multiplied
    layers: Array  # (L,) bool: layers entered


@dataclass(frozen=True)
class Proof:
    """The comparison of the profile with the usage that the graph reports."""

    tokens: int
    """Decoded tokens."""
    rows_multiplied: int
    """Rows that experts multiplied."""
    rows_dense: int
    """Rows that all experts of all layers would have multiplied."""
    layers_entered: int
    """Layers entered, summed over the tokens."""
    failures: list[str]
    """The differences between profile and reported usage, for the user."""
    head_rows_multiplied: int = 0
    """Rows that the slices of heads multiplied."""
    head_rows_dense: int = 0
    """Rows that the slices of all heads would have multiplied; 0 where all heads are one product."""

    def report(self) -> dict[str, Any]:
        """Return the figures for the manifest."""
        return {
            "tokens": self.tokens,
            "expert_rows_multiplied": self.rows_multiplied,
            "expert_rows_dense": self.rows_dense,
            "layers_entered": self.layers_entered,
            "head_rows_multiplied": self.head_rows_multiplied,
            "head_rows_dense": self.head_rows_dense,
            "passed": not self.failures,
        }

    def line(self, num_layers: int) -> str:
        """Return one line for the user."""
        heads = f"{self.head_rows_multiplied} of {self.head_rows_dense} head rows, " if self.head_rows_dense else ""
        return (
            f"profile of {self.tokens} decoded tokens: {self.rows_multiplied} of {self.rows_dense} expert rows "
            f"multiplied, {heads}{self.layers_entered} of {self.tokens * num_layers} layers entered, "
            + ("as the model reports" if not self.failures else "NOT as the model reports")
        )


def prove(folder: Path, manifest: Manifest, ids: Sequence[int], thresholds: Sequence[ThresholdTensors]) -> Proof:
    """Decode `ids` one by one from an empty cache under the profiler, with each of `thresholds` in turn."""
    model = manifest.model
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_mem_pattern = False
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(str(folder / GRAPH), options, providers=["CPUExecutionProvider"])
    graph = Graph(onnxruntime, session, manifest, Meter(manifest), "cpu", "fp32", mixes_sequences=False)
    sequence = Batch(graph, capacity=len(ids)).join()
    no_heads = np.zeros((model.num_layers, 1, model.num_heads), np.bool_)
    reported: list[tuple[Array, Array, Array]] = []
    for position, token in enumerate(ids):
        at = thresholds[position % len(thresholds)]
        sequence.thresholds = Thresholds(**{name: values.numpy() for name, values in at.given().items()})
        used = sequence.step(token).routes
        heads = no_heads if used.selected_heads is None else used.selected_heads
        reported.append((used.selected_experts[:, 0], heads[:, 0], used.layers_run[:, 0]))
    path = Path(session.end_profiling())
    try:
        executed = read_profile(json.loads(path.read_bytes()), model.num_layers, model.num_experts, model.num_heads)
    finally:
        path.unlink()

    failures = [] if len(executed) == len(reported) else [f"{len(executed)} passes profiled, {len(reported)} run"]
    routed = np.array([layer.routing != "dense" for layer in model.layers])
    sliced = np.array([layer.head > 0 for layer in manifest.costs.flops.layers])
    for token, (one, (selected, heads, layers_run)) in enumerate(zip(executed, reported, strict=False)):
        for name, rows, used in (
            ("expert", one.rows, selected & routed[:, None]),
            ("head", one.head_rows, heads & sliced[:, None]),
        ):
            if not np.array_equal(rows, np.repeat(used[:, None], 2, 1).astype(np.int64)):  # (L, 2, E) or (L, 2, H)
                failures.append(f"token {token}: {name} rows multiplied differ from what the model reports")
        if not np.array_equal(one.layers, layers_run):
            failures.append(
                f"token {token}: entered layers {np.flatnonzero(one.layers).tolist()}, "
                f"the model reports {np.flatnonzero(layers_run).tolist()}"
            )
    return Proof(
        tokens=len(reported),
        rows_multiplied=int(sum(one.rows[:, 0].sum() for one in executed)),
        rows_dense=len(reported) * sum(one.candidates for one in model.layers if one.routing != "dense"),
        layers_entered=int(sum(one.layers.sum() for one in executed)),
        failures=failures,
        head_rows_multiplied=int(sum(one.head_rows[:, 0].sum() for one in executed)),
        head_rows_dense=len(reported) * int(sliced.sum()) * model.num_heads,
    )


def read_profile(events: list[dict[str, Any]], num_layers: int, num_experts: int, num_heads: int) -> list[Executed]:
    """Return what each pass of a profile executed, from the names and input shapes of its nodes."""
    passes = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")
    starts = np.array([start for start, _ in passes])

    def nothing() -> Executed:
        rows, head_rows = (np.zeros((num_layers, 2, parts), np.int64) for parts in (num_experts, num_heads))
        return Executed(rows, head_rows, np.zeros(num_layers, np.bool_))

    executed = [nothing() for _ in passes]
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        if event.get("cat") != "Node" or name == event["name"]:
            continue
        one = executed[int(starts.searchsorted(event["ts"], side="right")) - 1]
        if expert := EXPERT.match(name):
            shape = next(iter(event["args"]["input_type_shape"][0].values()))
            one.rows[int(expert[1]), int(expert[2] == "down"), int(expert[3])] += shape[0]
        elif head := HEAD.match(name):
            shape = next(iter(event["args"]["input_type_shape"][0].values()))
            one.head_rows[int(head[1]), ("q", "o").index(head[2]), int(head[3])] += shape[0]
        elif layer := LAYER.match(name):
            one.layers[int(layer[1])] = True
    return executed
