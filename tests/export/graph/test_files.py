"""A graph and its large weights, in two files."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from support.graphs.bare_graph import MODELS, Graph, Sequences, initializers, model_of, weights_of
from support.models import busy_thresholds, tiny_ids

from adaptive_lm.export.cuda.transformer import build as build_cuda
from adaptive_lm.export.fused.transformer import build as build_fused
from adaptive_lm.export.graph.builder import Later
from adaptive_lm.export.graph.files import SMALL, save, size_of
from adaptive_lm.export.graph.lazy_array import LazyArray
from adaptive_lm.export.model.transformer import build
from adaptive_lm.runtime.format.manifest import Precision, Precisions
from adaptive_lm.runtime.ops.layout import ALIGNMENT


@pytest.mark.parametrize("name", ["both_none", "everything_project"])
def test_large_weights_of_every_branch_are_aligned_outside_and_the_same(tmp_path: Path, name: str) -> None:
    before = {t.name: numpy_helper.to_array(t) for t in initializers(build(MODELS[name], weights_of(model_of(name))))}
    files = save(build(MODELS[name], weights_of(model_of(name))), tmp_path / "g.onnx", tmp_path / "g.onnx.data")
    assert [file.path for file in files] == [tmp_path / "g.onnx", tmp_path / "g.onnx.data"]
    for file in files:
        content = file.path.read_bytes()
        assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    proto = onnx.load(tmp_path / "g.onnx", load_external_data=False)
    for tensor in initializers(proto):
        outside = tensor.data_location == TensorProto.EXTERNAL
        assert outside is (before[tensor.name].nbytes >= SMALL)
        if outside:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            assert entries["location"] == "g.onnx.data"
            assert int(entries["offset"]) % ALIGNMENT == 0
            assert not tensor.raw_data
    whole = onnx.load(tmp_path / "g.onnx")
    for tensor in initializers(whole):
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), before[tensor.name])
    onnx.checker.check_model(tmp_path / "g.onnx", full_check=True)
    ids, limits = tiny_ids(2, batch=1).numpy(), busy_thresholds(MODELS[name])
    graphs = (Graph(proto, MODELS[name]) for proto in (whole, build(MODELS[name], weights_of(model_of(name)))))
    one, other = (Sequences(graph).run(ids, limits) for graph in graphs)
    np.testing.assert_array_equal(one.logits, other.logits)


def test_a_graph_without_large_weights_is_one_file(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    infos = [onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    weight = numpy_helper.from_array(np.ones(2, np.float32), "w")
    proto = onnx.helper.make_model(onnx.helper.make_graph([node], "g", infos[:1], infos[1:], [weight]))
    files = save(proto, tmp_path / "g.onnx", tmp_path / "g.onnx.data")
    assert [file.path for file in files] == [tmp_path / "g.onnx"]
    assert [path.name for path in tmp_path.iterdir()] == ["g.onnx"]


def test_both_files_are_as_readable_as_any_file(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("x")
    for file in save(build(MODELS["top_p"], weights_of(model_of("top_p"))), tmp_path / "g.onnx", tmp_path / "g.data"):
        assert file.path.stat().st_mode == (tmp_path / "other").stat().st_mode


BUILDS = {"portable": build, "cpu": build_fused, "cuda": build_cuda}
CASES: dict[str, tuple[Precision, ...]] = {
    "portable": ("fp32", "bf16", "int8", "int4"), "cpu": ("fp32", "int8", "int4"), "cuda": ("fp32", "fp16"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["both_none", "everything_project", "shared_tied_project", "top_k_project"])
@pytest.mark.parametrize(("target", "precision"), [(t, p) for t, precisions in CASES.items() for p in precisions])
def test_weights_that_are_computed_while_they_are_written_are_the_same_bytes(
    tmp_path: Path, name: str, target: str, precision: Precision
) -> None:
    state, precisions = weights_of(model_of(name)), Precisions.of(precision)
    later: Later = {}
    whole = BUILDS[target](MODELS[name], state, precisions)
    without = BUILDS[target](MODELS[name], state, precisions, later=later)
    assert {t.name for t in initializers(without) if not t.raw_data} == set(later) != set()
    assert max(len(t.raw_data) for t in initializers(without) if t.name in state) < SMALL, "the graph holds none"
    expected = size_of(without, later)
    contents = []
    for folder, proto, lazily in (("whole", whole, None), ("lazy", without, later)):
        (tmp_path / folder).mkdir()
        files = save(proto, tmp_path / folder / "g.onnx", tmp_path / folder / "g.onnx.data", lazily)
        contents.append([file.path.read_bytes() for file in files])
    assert contents[0] == contents[1]
    written = sum(map(len, contents[1]))
    assert 0.9 * written < expected <= written, "the size is known before anything is written"


def test_only_one_weight_is_in_memory_at_a_time_while_they_are_written(tmp_path: Path) -> None:
    alive: list[str] = []

    def watched(name: str, value: np.ndarray) -> LazyArray:
        def read(begin: int, end: int) -> np.ndarray:
            if alive[-1:] != [name]:
                alive.append(name)
            return value.reshape(value.shape or (1,))[begin:end]

        return LazyArray(value.shape, value.dtype, read)

    state = {name: watched(name, value) for name, value in weights_of(model_of("both_none")).items()}
    later: Later = {}
    proto = build(MODELS["both_none"], state, later=later)
    alive.clear()
    save(proto, tmp_path / "g.onnx", tmp_path / "g.onnx.data", later)
    assert len(alive) == len(set(alive)) > 10, "each is read once, and to its end before the next"
