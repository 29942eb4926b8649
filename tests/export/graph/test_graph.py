"""The parts of the graph: its operators, its weights, their names and where they are stored."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.cases import each
from support.cover import in_each
from support.graphs.bare_graph import (
    COVER,
    MODELS,
    graphs,
    initializers,
    model_of,
    nodes,
    proto_of,
    readers_of,
    weights_of,
)

from adaptive_lm.export.graph.builder import FLOAT, IR_VERSION, OPSET, Graph
from adaptive_lm.export.graph.weights import Weights, is_matrix
from adaptive_lm.export.model.transformer import build
from adaptive_lm.runtime.format.manifest import Precision, Precisions

SMALL = 512  # bytes: of the matrices of these tiny models, in either precision, all are larger
TABLES = ("rotary.cos", "rotary.sin")
"""Read by every layer and multiplied by none, so ONNX Runtime has nothing to prepack."""
PRECISIONS: list[Precision] = ["fp32", "int8"]


@each(("name", "precision"), in_each(MODELS, COVER, PRECISIONS))
def test_the_graph_is_standard_onnx_of_the_stated_version(name: str, precision: Precision) -> None:
    proto = proto_of(name, precision)
    onnx.checker.check_model(proto, full_check=False)
    assert proto.ir_version == IR_VERSION == 11
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", OPSET)] == [("", 24)]
    assert {node.domain for node in nodes(proto)} == {""}
    names = [node.name for node in nodes(proto)]
    assert len(names) == len(set(names)), "two nodes of one name: a profile could not tell them apart"


@each(("name", "precision"), in_each(MODELS, COVER, PRECISIONS))
def test_every_weight_of_the_checkpoint_is_used_once_under_its_name(name: str, precision: Precision) -> None:
    proto, state = proto_of(name, precision), weights_of(model_of(name))
    written = Counter(tensor.name for tensor in initializers(proto))
    read = Counter(value for node in nodes(proto) for value in node.input)
    for weight, value in state.items():
        if weight.endswith("window_controller.window"):
            continue  # a number of the masks' tables
        experts = range(len(value)) if value.ndim == 3 else None
        parts = [weight] if experts is None else [f"{weight}.{expert}" for expert in experts]
        if weight.endswith("conv.weight"):
            parts = [f"{weight}.{tap}" for tap in range(value.shape[1])]
        elif weight.endswith("A_log"):
            parts = [f"{weight}.rate"]
        small_of_a_mixer = ".mixer." in weight and not is_matrix(weight, value.ndim)
        kept = ("router", "position", "shared_gate", "zero_experts")
        exact = small_of_a_mixer or weight.endswith("bias") or any(word in weight for word in kept)
        if precision == "int8" and value.ndim > 1 and not exact:
            assert written[f"{weight}.scale"] == 1
            parts = [f"{part}.int8" for part in parts]
        for part in parts:
            assert written[part] == 1, part
            shared = weight.startswith(("embedding.", "head.", "norm."))  # exits use the output head too
            shared = shared or weight.endswith("mixer.decay")  # one token and a prompt read it
            readers = readers_of(name, weight)
            assert read[part] >= readers if shared else read[part] == readers, part
    unread = [tensor for tensor in written if not read[tensor]]
    assert not unread


@each("name", MODELS)
def test_the_weights_in_the_file_are_those_of_the_checkpoint(name: str) -> None:
    state = weights_of(model_of(name))
    written = {tensor.name: numpy_helper.to_array(tensor) for tensor in initializers(proto_of(name))}
    for weight, value in state.items():
        if weight.endswith("window_controller.window"):
            continue  # a number of the masks' tables
        if weight.endswith("conv.weight"):
            taps = [written[f"{weight}.{tap}"] for tap in range(value.shape[1])]
            np.testing.assert_array_equal(np.stack(taps, 1), value, err_msg=weight)
        elif weight.endswith("A_log"):
            np.testing.assert_array_equal(written[f"{weight}.rate"], -np.exp(value), err_msg=weight)
        elif ".mixer." in weight:
            np.testing.assert_array_equal(written[weight].reshape(value.shape), value, err_msg=weight)
        elif value.ndim == 3:
            value = np.stack([written[f"{weight}.{expert}"] for expert in range(len(value))])
            np.testing.assert_array_equal(value, state[weight], err_msg=weight)
        else:
            np.testing.assert_array_equal(written[weight], value, err_msg=weight)


@each(("name", "precision"), in_each(MODELS, COVER, PRECISIONS))
def test_a_large_weight_lies_in_the_branch_that_reads_it(name: str, precision: Precision) -> None:
    """ONNX Runtime does not prepack a weight of the root graph that a branch multiplies with."""
    root = {t.name: numpy_helper.to_array(t).nbytes for t in proto_of(name, precision).graph.initializer}
    large = {weight for weight, size in root.items() if size > SMALL} - set(TABLES)
    large = {weight for weight in large if not weight.startswith(MODELS[name].recursion.shared)}  # several branches
    branches = list(graphs(proto_of(name, precision).graph))[1:]
    stray = {value for graph in branches for node in graph.node for value in node.input} & large
    assert not stray
    own = [i for i in range(MODELS[name].num_layers) if i not in MODELS[name].recursion.repeated]
    if any(MODELS[name].has_depth_router(i) for i in own):
        inside = [t for graph in branches for t in graph.initializer if numpy_helper.to_array(t).nbytes > SMALL]
        assert inside, "the routed layers have large weights, so they must be somewhere in the branches"


@each("name", MODELS)
def test_there_is_one_if_for_each_layer_that_can_be_skipped(name: str) -> None:
    config = MODELS[name]
    first_exit = min(config.depth.exit_layers, default=config.num_layers)
    routed = [i for i in range(config.num_layers) if config.has_depth_router(i) or config.follows_router(i)]
    skippable = [i for i in range(config.num_layers) if i in routed or i > first_exit]
    proto = proto_of(name)
    # and in a recurrent layer, which multiplies no weight in it, one for the recurrence: a token, or those of a prompt
    recurrent = [i for i in range(config.num_layers) if not config.attends(i)]
    steps = [node.name for node in nodes(proto) if node.op_type == "If" and node.name.endswith("mixer/recurrence")]
    assert sorted(steps) == [f"layers.{i}/{'run/' * (i in skippable)}mixer/recurrence" for i in recurrent]
    branches = [node.name for node in nodes(proto) if node.op_type == "If" and node.name not in steps]
    assert branches == [f"layers.{i}/run" for i in skippable]
    at_the_root = [node.name for node in proto.graph.node if node.op_type == "If" and node.name not in steps]
    assert at_the_root == branches, "an If inside an If"
    loops = [node.op_type for node in nodes(proto) if node.op_type in ("Loop", "Scan")]
    assert loops == ["Scan"] * len(recurrent)


@pytest.mark.parametrize(
    ("name", "fp32", "int8"),
    [("top_p", 317, 507), ("dense", 177, 355), ("both_none", 527, 747), ("both_project", 498, 736),
     ("shared_tied_project", 508, 786)],
)  # fmt: skip
def test_models_without_the_later_mechanisms_have_no_node_for_them(name: str, fp32: int, int8: int) -> None:
    """The numbers of nodes before heads, windows, contextual positions and per-token thresholds; bytes were equal."""
    assert [len(nodes(proto_of(name, precision))) for precision in PRECISIONS] == [fp32, int8]


def test_a_weight_that_no_node_uses_is_a_defect() -> None:
    state = weights_of(model_of("top_p")) | {"layers.0.forgotten": np.ones(3, np.float32)}
    with pytest.raises(AssertionError, match=r"no node uses.*layers\.0\.forgotten"):
        build(MODELS["top_p"], state)


def test_a_weight_that_is_missing_is_a_defect() -> None:
    state = weights_of(model_of("top_p"))
    del state["layers.1.moe.down"]
    with pytest.raises(KeyError, match=r"layers\.1\.moe\.down"):
        build(MODELS["top_p"], state)


def test_a_weight_that_is_taken_or_written_twice_is_a_defect() -> None:
    weights = Weights({"w": np.ones((2, 2), np.float32)}, Precisions.of("fp32"))
    root = Graph("root")
    weights.parameter(root, "w")
    with pytest.raises(AssertionError, match="w is taken twice"):
        weights.take("w")
    with pytest.raises(AssertionError, match="w is written twice"):
        root.weight("w", np.ones(2))
    with pytest.raises(AssertionError, match="w is written twice"):
        Graph("branch", root).weight("w", np.ones(2))


def test_a_branch_returns_outer_values_and_repeated_ones_through_an_identity() -> None:
    g = Graph("root")

    def twice(b: Graph) -> list[str]:
        y = b.op("Neg", "x")
        return [y, y, "x"]

    g.branch("condition", "choice", [FLOAT] * 3, twice, lambda b: ["x"] * 3, results=("first", "", ""))
    (node,) = g.nodes
    sides = {attribute.name: attribute.g for attribute in node.attribute}
    assert node.output[0] == "first"
    assert [n.op_type for n in sides["then_branch"].node] == ["Neg", "Identity", "Identity"]
    assert [n.op_type for n in sides["else_branch"].node] == ["Identity"] * 3
    for side in sides.values():
        assert len({output.name for output in side.output}) == 3


def test_equal_constants_are_written_once_and_keep_their_shape() -> None:
    g = Graph("root")
    assert g.int64(1) == g.int64(1) != g.scalar(1)
    assert g.scalar(1) != g.scalar(1.0) != g.scalar(True)
    shapes = [tuple(tensor.dims) for tensor in g.initializers.values()]
    assert shapes == [(1,), (), (), ()]


def test_nodes_of_one_name_are_numbered() -> None:
    g = Graph("root")
    with g.scope("layer"):
        assert [g.op("Neg", "x") for _ in range(3)] == ["layer/Neg", "layer/Neg.1", "layer/Neg.2"]
    assert g.op("Neg", "x") == "Neg"
