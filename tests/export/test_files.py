"""A graph and its large weights, in two files."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from support.bare_graph import MODELS, Graph, Sequences, initializers, model_of, weights_of
from support.models import busy_thresholds, tiny_ids

from adaptive_lm.export.graph.files import SMALL, save
from adaptive_lm.export.model.transformer import build
from adaptive_lm.runtime.ops.layout import ALIGNMENT


@pytest.mark.parametrize("name", ["both_none", "everything_project"])
def test_large_weights_of_every_branch_are_aligned_outside_and_the_same(tmp_path: Path, name: str) -> None:
    before = {t.name: numpy_helper.to_array(t) for t in initializers(build(MODELS[name], weights_of(model_of(name))))}
    files = save(build(MODELS[name], weights_of(model_of(name))), tmp_path / "g.onnx", tmp_path / "g.onnx.data")
    assert files == [tmp_path / "g.onnx", tmp_path / "g.onnx.data"]
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
    assert save(proto, tmp_path / "g.onnx", tmp_path / "g.onnx.data") == [tmp_path / "g.onnx"]
    assert [path.name for path in tmp_path.iterdir()] == ["g.onnx"]


def test_both_files_are_as_readable_as_any_file(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("x")
    for path in save(build(MODELS["top_p"], weights_of(model_of("top_p"))), tmp_path / "g.onnx", tmp_path / "g.data"):
        assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
