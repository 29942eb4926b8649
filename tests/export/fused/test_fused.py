"""The graph of our operators: its nodes, its weights, and the file that they are in. The operators are not run here."""

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, TypeProto, numpy_helper
from support.cases import each
from support.cover import in_each
from support.graphs.bare_graph import COVER, MODELS, initializers, model_of, nodes, proto_of, readers_of, weights_of
from support.models import BOTH, BY_MASS_AND_SHARED, LEARNED, PER_TOKEN, variant
from support.runs import write_run

from adaptive_lm.contract.file_names import target_files
from adaptive_lm.export.fused.attention import policy_of
from adaptive_lm.export.fused.transformer import build
from adaptive_lm.export.graph.weights import FP32
from adaptive_lm.export.package import write_files
from adaptive_lm.export.source import read
from adaptive_lm.export.source import weights_of as exported_weights
from adaptive_lm.runtime.format.manifest import KV, Manifest, Precision, Precisions
from adaptive_lm.runtime.ops import layout
from adaptive_lm.runtime.ops.layout import ALIGNMENT, pack, pack_positions
from adaptive_lm.runtime.ops.library import VERSION
from adaptive_lm.train.model import ModelConfig, Transformer

OPERATORS = {
    "Embedding", "DepthRouter", "HeadRouter", "Windows", "Attention", "RetNet", "Mamba2", "GatedDelta", "Rwkv7",
    "FeedForward", "Exit", "Logits",
}  # fmt: skip
DOMAIN = "adaptive_lm"
PRECISIONS: list[Precision] = ["fp32", "bf16", "int8", "int4"]


@cache
def fused(name: str, precision: Precision = "fp32", kv: KV = "fp32") -> onnx.ModelProto:
    return build(MODELS[name], weights_of(model_of(name)), Precisions.of(precision), kv)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def ours(proto: onnx.ModelProto, op_type: str) -> list[onnx.NodeProto]:
    return [node for node in proto.graph.node if node.domain == DOMAIN and node.op_type == op_type]


def state_of(config: ModelConfig) -> dict[str, np.ndarray]:
    return exported_weights(Transformer(config).eval())


@each(("name", "precision"), in_each(MODELS, COVER, PRECISIONS))
def test_every_node_is_ours_or_standard_and_none_is_a_branch(name: str, precision: Precision) -> None:
    proto = fused(name, precision)
    onnx.checker.check_model(proto)
    assert proto.ir_version == 11
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": 24, DOMAIN: VERSION}
    assert {node.op_type for node in proto.graph.node if node.domain} <= OPERATORS
    assert {node.domain for node in proto.graph.node} == {"", DOMAIN}
    assert nodes(proto) == list(proto.graph.node), "a graph inside a node"
    names = [node.name for node in proto.graph.node]
    assert len(names) == len(set(names)), "two nodes of one name: a profile could not tell them apart"


def test_a_token_of_eight_plain_layers_takes_few_nodes() -> None:
    config = variant(num_layers=8)
    assert len(build(config, state_of(config), FP32).graph.node) == 26


def test_a_token_of_eight_layers_with_every_mechanism_takes_at_most_eight_nodes_a_layer() -> None:
    config = variant(
        num_layers=8, num_heads=6, num_kv_heads=3, head_dim=8,
        heads={**BY_MASS_AND_SHARED, **PER_TOKEN}, attention={**LEARNED, "window": 12},
        ffn={**PER_TOKEN, "shared_expert_dim": 20}, depth={**BOTH, **PER_TOKEN},
    )  # fmt: skip
    assert len(build(config, state_of(config), FP32).graph.node) <= 8 * 8


@each(("name", "kv"), in_each(MODELS, COVER, get_args(KV)))
def test_inputs_and_outputs_are_those_of_the_portable_graph_but_for_slots_and_caches(name: str, kv: KV) -> None:
    """An int8 key or value carries its float32 scale in four more bytes; what counts a cell stays a float."""
    config, kinds = MODELS[name], {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "int8": TensorProto.INT8}
    own: dict[str, list[str | int]] = {
        "num_logits": ["R"],
        "logits": ["R", config.vocab_size],
        "lengths": [config.num_layers, "S"],
        "new_lengths": [config.num_layers, "S"],
    }
    for side in ("input", "output"):
        expected, actual = (
            {value.name: value.type.tensor_type for value in getattr(graph, side)}
            for graph in (proto_of(name).graph, fused(name, "fp32", kv).graph)
        )
        renamed = [one.replace("num_logits", "logit_rows") for one in expected]
        assert [one for one in actual if one != "slots"] == renamed
        for one, other in zip(expected, renamed, strict=True):
            kind, shape = expected[one].elem_type, own.get(one, sizes(expected[one]))
            if one.startswith(("past_", "present_")):
                shape = ["S", *shape[1:]]
                if one.split("_")[1].startswith(("key", "value")):
                    kind, shape = kinds[kv], [*shape[:3], config.resolved_head_dim + 4 * (kv == "int8")]
            assert (actual[other].elem_type, sizes(actual[other])) == (kind, shape), one
        if side == "input":
            assert (actual["slots"].elem_type, sizes(actual["slots"])) == (TensorProto.INT64, ["B"])


def sizes(tensor: TypeProto.Tensor) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]


def packed_names(state: dict[str, np.ndarray]) -> set[str]:
    """Name the matrices that our operators multiply by; those of routers, gates and positions are not packed."""
    kept = ("router", "shared_gate", "zero_experts", "position", "bias", "conv.weight", "a_proj", "b_proj")
    return {name for name, value in state.items() if value.ndim > 1 and not any(word in name for word in kept)}


@each(("name", "precision"), in_each(MODELS, COVER, PRECISIONS))
def test_every_weight_is_written_once_packed_or_as_it_is(name: str, precision: Precision) -> None:
    proto, state = fused(name, precision), weights_of(model_of(name))
    written = {tensor.name: tensor for tensor in initializers(proto)}
    assert max(Counter(tensor.name for tensor in initializers(proto)).values()) == 1
    read_by = Counter(value for node in proto.graph.node for value in node.input)
    matrices = packed_names(state)
    for weight, value in state.items():
        if weight.endswith("window_controller.window"):
            continue  # an attribute
        if weight.endswith(("conv.weight", "A_log")) or ".mu_" in weight:
            assert_rearranged(weight, value, written)
            continue
        if weight.endswith("position_embedding"):
            np.testing.assert_array_equal(numpy_helper.to_array(written[f"{weight}.packed"]), pack_positions(value))
            continue
        if weight not in matrices:
            array = numpy_helper.to_array(written[weight])
            np.testing.assert_array_equal(array.reshape(value.shape), value, err_msg=weight)
            assert array.dtype == np.float32
            continue
        part = Precisions.of(precision)
        own = part.embedding if weight in ("embedding.weight", "head.weight") else part.attention
        if ".mixer." in weight and weight.endswith(("1.weight", "2.weight")):
            own = "fp32"  # of low rank
        expected = pack(value if value.ndim == 2 else value.swapaxes(1, 2), own)
        np.testing.assert_array_equal(numpy_helper.to_array(written[f"{weight}.packed"]), expected, err_msg=weight)
        assert weight not in written
        shared = weight in ("embedding.weight", "head.weight")  # exits use the output head too
        readers = readers_of(name, weight)
        assert read_by[f"{weight}.packed"] >= readers if shared else read_by[f"{weight}.packed"] == readers
    assert not [tensor for tensor in written if not read_by[tensor]]


def assert_rearranged(weight: str, value: np.ndarray, written: dict[str, TensorProto]) -> None:
    """Assert that a weight of a mixer is in the graph in the form that its operator reads."""
    mixer, name = weight.split(".mixer.")
    suffix = {"conv.weight": "conv.by_token", "A_log": "rate"}.get(name, "shift")
    array = numpy_helper.to_array(written[f"{mixer}.mixer.{suffix}"])
    expected = {"conv.by_token": value.T, "rate": np.exp(value), "shift": value}[suffix]
    own = array["rwkvag".index(name[-1])] if suffix == "shift" else array
    np.testing.assert_array_equal(own, expected, err_msg=weight)


def test_a_tied_head_is_the_matrix_of_the_embedding() -> None:
    proto = fused("shared_tied_project", "int8")
    (embedding,), (logits,) = ours(proto, "Embedding"), ours(proto, "Logits")
    assert embedding.input[1] == logits.input[3] == "embedding.weight.packed"
    assert {node.input[8] for node in ours(proto, "Exit")} == {"embedding.weight.packed"}


def test_a_weight_that_no_node_uses_is_a_defect() -> None:
    state = weights_of(model_of("top_p")) | {"layers.0.forgotten": np.ones(3, np.float32)}
    with pytest.raises(AssertionError, match=r"no node uses.*layers\.0\.forgotten"):
        build(MODELS["top_p"], state, FP32)


@pytest.mark.parametrize(
    ("name", "policies"),
    [("top_p", [0] * 4), ("routers_none", [0, 1, 1, 0]), ("both_project", [0, 2, 2, 2]), ("exits_none", [0, 1, 1, 1])],
)
def test_a_layer_knows_how_to_treat_tokens_that_skip_it(name: str, policies: list[int]) -> None:
    assert [policy_of(MODELS[name], i) for i in range(4)] == policies
    assert [attributes(node)["policy"] for node in ours(fused(name), "Attention")] == policies
    runs = [bool(node.input[1]) for node in ours(fused(name), "Attention")]
    assert runs == [policy > 0 for policy in policies]
    assert [bool(node.input[2]) for node in ours(fused(name), "FeedForward")] == runs


def test_each_part_states_its_own_precision() -> None:
    precisions = Precisions(experts="int4", attention="bf16", embedding="fp32", head="int8")
    proto = build(MODELS["exits_none"], weights_of(model_of("exits_none")), precisions)
    stated = {
        (node.op_type, name): value
        for node in proto.graph.node
        for name, value in attributes(node).items()
        if name.startswith("precision")
    }
    number = layout.PRECISIONS.index
    assert stated == {
        ("Embedding", "precision"): number("fp32"),
        ("Attention", "precision_q"): number("bf16"),
        ("Attention", "precision_kv"): number("bf16"),
        ("Attention", "precision_o"): number("bf16"),
        ("FeedForward", "precision_experts"): number("int4"),
        ("FeedForward", "precision_shared"): number("int4"),
        ("Exit", "precision"): number("int8"),
        ("Logits", "precision"): number("int8"),
    }


def test_the_precisions_of_the_manifest_are_those_of_the_layout_and_the_one_for_gpus() -> None:
    assert get_args(Precision) == get_args(layout.Precision)
    assert set(get_args(Precision)) == {*layout.PRECISIONS, "fp16"}


@pytest.mark.parametrize("name", ["length_none", "window_learned", "window_entropy", "window_fixed"])
def test_windows_are_numbers_of_a_layer_or_chosen_by_token(name: str) -> None:
    config, proto = MODELS[name], fused(name)
    by_token = config.attention.window_kind in ("length", "learned")
    windowed = [i for i in range(4) if config.window_of(i)]
    assert [attributes(node)["layer"] for node in ours(proto, "Windows")] == (windowed if by_token else [])
    stated = [attributes(node)["window"] for node in ours(proto, "Attention")]
    if config.attention.window_kind == "entropy":
        state = weights_of(model_of(name))
        assert stated == [state[f"layers.{i}.attention.window_controller.window"] for i in range(4)]
    else:
        assert stated == [config.window_of(i) for i in range(4)]


def test_equal_tables_of_windows_are_written_once() -> None:
    config = variant(attention={"window": 8, "window_kind": "length", "window_least": 3})
    tables = [t.name for t in build(config, state_of(config), FP32).graph.initializer if "window_by_length" in t.name]
    assert tables == ["layers.0.attention.window_by_length"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_packed_weights_are_aligned_in_a_file_of_their_own(tmp_path: Path, precision: Precision) -> None:
    source = read(write_run(tmp_path / "runs" / "tiny"))
    folder = tmp_path / "model"
    folder.mkdir()
    manifest = write_files(source, folder, Precisions.of(precision), ["cpu"])
    graph, data = target_files("cpu")
    assert (manifest.targets["cpu"].graph, manifest.targets["cpu"].data) == (graph, data)
    proto = onnx.load(folder / graph, load_external_data=False)
    outside = [t for t in proto.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert {t.name for t in proto.graph.initializer if t.name.endswith(".packed")} <= {t.name for t in outside}
    ends = 0
    for tensor in outside:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        assert entries["location"] == data
        assert int(entries["offset"]) % ALIGNMENT == 0
        assert int(entries["offset"]) >= ends, "two weights share bytes"
        ends = int(entries["offset"]) + int(entries["length"])
    assert ends == manifest.files[data].bytes == (folder / data).stat().st_size
    whole = {t.name: numpy_helper.to_array(t) for t in onnx.load(folder / graph).graph.initializer}
    for name in packed_names(source.weights()):
        value = np.asarray(source.weights()[name])
        own = Precisions.of(precision).head if name in ("embedding.weight", "head.weight") else precision
        np.testing.assert_array_equal(whole[f"{name}.packed"], pack(value if value.ndim == 2 else value.mT, own))
    manifest.write(folder)
    assert Manifest.read(folder) == manifest
