"""The proof that skipped work is not computed, and that it finds work that is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.cases import slowly_all
from support.graphs.bare_graph import everything_on
from support.runs import write_run
from support.skipping_models import SKIPPING

from adaptive_lm.contract.file_names import GRAPH
from adaptive_lm.export.exporter import Exported
from adaptive_lm.export.model.attention import heads
from adaptive_lm.export.package import write_files
from adaptive_lm.export.proof import skipping
from adaptive_lm.export.proof.judge import points
from adaptive_lm.export.proof.skipping import Executed, Proof, prove, read_profile
from adaptive_lm.export.source import Source, read
from adaptive_lm.runtime.dial.dial import Thresholds
from adaptive_lm.runtime.execution.session import Session
from adaptive_lm.runtime.format.manifest import Manifest, Precision, Precisions

TOKENS = 9
KINDS: dict[str, dict[str, Any]] = SKIPPING | {"dense": {"ffn": {"routing": "dense", "dim": 40}}}


@pytest.mark.parametrize(("kind", "precision"), slowly_all(KINDS, ["fp32", "int8"]))
def test_rows_multiplied_and_layers_entered_are_those_that_the_usage_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, precision: Precision
) -> None:
    monkeypatch.setattr(heads, "SLICED_FROM", {"fp32": 0, "int8": 0})
    source = read(write_run(tmp_path / "runs" / kind, **KINDS[kind]))
    folder = tmp_path / "model"
    folder.mkdir()
    manifest = write_files(source, folder, Precisions.of(precision))
    ids, limits = source.heldout_ids(TOKENS)[0].tolist(), list(points(source).values())
    proof = prove(folder, manifest, ids, limits)
    assert proof.failures == []
    assert not list(folder.glob("profile*")), "the profile stays behind"

    session = Session(folder, manifest, device="cpu", threads=1, verify=False)
    sequence = session.sequence()
    rows = layers = head_rows = 0
    for t, token in enumerate(ids):
        sequence.thresholds = Thresholds(**{n: v.numpy() for n, v in limits[t % len(limits)].given().items()})
        usage = sequence.step(token).usage
        layers += len(usage.layers_run)
        routed = [layer.routing != "dense" for layer in manifest.model.layers]
        rows += sum(len(used) for used, has in zip(usage.experts, routed, strict=True) if has)
        head_rows += sum(map(len, usage.heads)) if "heads" in KINDS[kind] else 0
    assert (proof.tokens, proof.rows_multiplied, proof.layers_entered) == (TOKENS, rows, layers)
    assert proof.head_rows_multiplied == head_rows
    assert proof.head_rows_dense == (TOKENS * 3 * 4 if "heads" in KINDS[kind] else 0)
    if "heads" in KINDS[kind]:
        assert TOKENS < head_rows < TOKENS * 3 * 4
        assert f"{head_rows} of {TOKENS * 12} head rows" in proof.line(3)
    most = sum(layer.candidates for layer in manifest.model.layers if layer.routing != "dense")
    assert proof.rows_dense == TOKENS * most
    assert most == {"dense": 0, "capped": 2 * 3}.get(kind, 3 * 4)
    if kind not in ("dense", "top_k"):
        assert TOKENS < proof.rows_multiplied < proof.rows_dense
    if kind in ("none", "project"):
        assert TOKENS < proof.layers_entered < 3 * TOKENS


def proof_of(exported: Exported, source: Source, folder: Path | None = None) -> Proof:
    ids = source.heldout_ids(TOKENS)[0].tolist()
    return prove(folder or exported.folder, Manifest.read(exported.folder), ids, [source.thresholds()])


def add_a_row(executed: list[Executed]) -> list[Executed]:
    layer, _, expert = np.argwhere(executed[2].rows == 0)[0]
    executed[2].rows[layer, 1, expert] += 1
    return executed


def enter_every_layer(executed: list[Executed]) -> list[Executed]:
    for one in executed:
        one.layers[:] = True
    return executed


@pytest.mark.parametrize(
    ("doctor", "expected"),
    [
        (add_a_row, "token 2: expert rows multiplied differ from what the model reports"),
        (enter_every_layer, r"token \d+: entered layers \[0, 1, 2\], the model reports \[0"),
        (lambda executed: executed[:-1], f"{TOKENS - 1} passes profiled, {TOKENS} run"),
    ],
    ids=["a row more", "every layer", "a pass missing"],
)
def test_a_profile_that_tells_another_story_fails_the_proof(
    exported: Exported,
    source: Source,
    monkeypatch: pytest.MonkeyPatch,
    doctor: Callable[[list[Executed]], list[Executed]],
    expected: str,
) -> None:
    monkeypatch.setattr(skipping, "read_profile", lambda *arguments: doctor(read_profile(*arguments)))
    proof = proof_of(exported, source)
    with pytest.raises(AssertionError, match=expected):
        raise AssertionError(proof.failures[0])
    assert "NOT as the model reports" in proof.line(3)
    assert proof.report()["passed"] is False


@pytest.fixture
def patched(exported: Exported, tmp_path: Path) -> Callable[[Callable[[onnx.GraphProto], None]], Path]:
    """Copy the exported folder with its graph changed."""

    def change(edit: Callable[[onnx.GraphProto], None]) -> Path:
        folder = Path(shutil.copytree(exported.folder, tmp_path / "patched"))
        proto = onnx.load(folder / GRAPH, load_external_data=False)
        edit(proto.graph)
        onnx.save(proto, folder / GRAPH)
        return folder

    return change


def compute_all_and_throw_away(graph: onnx.GraphProto) -> None:
    """Run the layer for every token and leave the usage output unchanged, so that nothing is really skipped."""
    (reshaped,) = [n for n in graph.node if n.name == "layers.1/Reshape"]
    everyone = next(n.output[0] for n in graph.node if n.op_type == "Expand" and n.name == "Expand")
    reshaped.input[0] = everyone


def force_the_branch(graph: onnx.GraphProto) -> None:
    """No row is more than -1 rows."""
    (someone,) = [n for n in graph.node if n.name == "layers.1/someone_runs"]
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(-1), "minus_one"))
    someone.input[1] = "minus_one"


def test_a_graph_that_computes_a_skipped_layer_fails_the_proof(
    exported: Exported, source: Source, patched: Callable[..., Path]
) -> None:
    assert not proof_of(exported, source).failures
    proof = proof_of(exported, source, patched(compute_all_and_throw_away))
    assert any("entered layers [0, 1, 2], the model reports [0, 2]" in failure for failure in proof.failures)


def test_a_branch_that_is_always_entered_does_not_pass(
    exported: Exported, source: Source, patched: Callable[..., Path]
) -> None:
    """ONNX Runtime refuses attention of no token, so the graph breaks before the proof could fail."""
    with pytest.raises(Exception, match=r"layers\.1/run/attention/Attention"):
        proof_of(exported, source, patched(force_the_branch))


def test_a_profile_is_read_by_the_names_and_shapes_of_its_nodes() -> None:
    def node(name: str, at: int, rows: int = 1, **more: Any) -> dict[str, Any]:
        shapes = [{"float": [rows, 32]}, {"float": [32, 16]}]
        return {"cat": "Node", "name": name, "ts": at, "dur": 1, "args": {"input_type_shape": shapes}} | more

    events = [
        node("layers.0/moe/gate_up.3_kernel_time", 110, rows=2),
        node("layers.0/moe/down.3_kernel_time", 111, rows=2),
        node("layers.1/run/moe/gate_up.0_kernel_time", 112, rows=0),
        node("layers.1/run/attention/Attention_kernel_time", 113),
        node("layers.2/run/attention/cope/gates_kernel_time", 113),
        node("layers.2/run/attention/q.1_kernel_time", 113, rows=2),
        node("layers.2/run/attention/o.1_kernel_time", 113, rows=2),
        node("layers.2/run/attention/q_norm_kernel_time", 113),
        node("layers.0/moe/shared/gate_up_kernel_time", 114),
        node("layers.0/moe/gate_up.3_fence_before", 115),
        node("layers.0/moe/gate_up.3_kernel_time", 116, cat="Session"),
        {"cat": "Session", "name": "model_run", "ts": 200, "dur": 50},
        node("layers.12/moe/gate_up.1_kernel_time", 205),
        {"cat": "Session", "name": "model_run", "ts": 100, "dur": 50},
    ]
    first, second = read_profile(json.loads(json.dumps(events)), 13, 4, 3)
    assert first.rows[0].tolist() == [[0, 0, 0, 2], [0, 0, 0, 2]]
    assert first.rows[1:].sum() == 0
    assert np.flatnonzero(first.layers).tolist() == [1, 2]
    assert first.head_rows[2].tolist() == [[0, 2, 0], [0, 2, 0]]
    assert first.head_rows.sum() == 4
    assert np.argwhere(second.rows).tolist() == [[12, 0, 1]]


def test_everything_on_multiplies_every_row(exported: Exported, source: Source) -> None:
    ids = source.heldout_ids(TOKENS)[0].tolist()
    proof = prove(exported.folder, Manifest.read(exported.folder), ids, [everything_on(source.config)])
    assert not proof.failures
    assert proof.rows_multiplied == proof.rows_dense == TOKENS * 3 * 4
    assert proof.layers_entered == TOKENS * 3
