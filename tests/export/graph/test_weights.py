"""int8: rounding of weights and activations, and that a token's result does not depend on its neighbours."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from support.cases import each
from support.graphs.bare_graph import (
    COVER,
    MODELS,
    Graph,
    Sequences,
    everything_on,
    graph_of,
    initializers,
    joined,
    model_of,
    nodes,
    row,
    same_decisions,
    weights_of,
)
from support.graphs.bare_graph import proto_of as graph_proto
from support.models import busy_thresholds, judge, season, tiny_ids, variant

from adaptive_lm.export.graph import dispatch, weights
from adaptive_lm.export.graph.builder import FLOAT, IR_VERSION, OPSET, UINT8
from adaptive_lm.export.graph.builder import Graph as Builder
from adaptive_lm.export.graph.weights import Weights, is_matrix, part_of, quantize_columns, quantize_rows
from adaptive_lm.export.model import output_head
from adaptive_lm.export.model.transformer import build
from adaptive_lm.export.proof.judge import rounded_matrix, rounded_model
from adaptive_lm.export.proof.parity import TOLERANCE
from adaptive_lm.runtime.format.manifest import Precision, Precisions
from adaptive_lm.runtime.ops.layout import rounded as layout_rounded
from adaptive_lm.train.model import ModelConfig, ThresholdTensors, Transformer

OUTLIER = 28
"""A token whose embedding has one huge number. One scale for the whole tensor would leave its neighbours few steps."""


def run_one(g: Builder, output: str, x: np.ndarray) -> np.ndarray:
    """Run a graph with one float input x."""
    infos = [helper.make_tensor_value_info(name, FLOAT, [None, None]) for name in ("x", output)]
    graph = helper.make_graph(g.nodes, "one", infos[:1], infos[1:], list(g.initializers.values()))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run([output], {"x": x})[0]
    return found


def test_columns_are_rounded_to_the_nearest_of_255_steps_each_with_its_own_scale() -> None:
    weight = np.random.default_rng(0).normal(size=(3, 40, 6)).astype(np.float32) * np.array([1, 1e-3, 50, 1, 0, 1e-30])
    quantized, scale = quantize_columns(weight.astype(np.float32))
    assert quantized.dtype == np.int8
    assert scale.shape == (3, 6)
    assert (np.abs(quantized).max(1)[:, [0, 1, 2, 3, 5]] == 127).all(), "the largest of each column fills the range"
    assert (quantized[..., 4] == 0).all(), "a column of zeros divides by no zero"
    assert (np.abs(quantized * scale[:, None] - weight) <= 0.501 * scale[:, None]).all()


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_product_is_that_of_the_rounded_numbers(rows: int) -> None:
    random = np.random.default_rng(1)
    weight = random.normal(size=(7, 24)).astype(np.float32)  # (O, I)
    x = (random.normal(size=(rows, 24)) * 10.0 ** random.integers(-6, 6, (rows, 1))).astype(np.float32)
    if rows:
        x[-1] = 0
    g = Builder("root")
    output = Weights({"layer.w.weight": weight}, Precisions.of("int8")).linear(g, "x", "layer.w.weight")
    found = run_one(g, output, x)

    scale = np.maximum(np.abs(x).max(-1, keepdims=True, initial=0) / np.float32(127), np.float32(1e-30))
    steps = np.rint(x / scale)
    columns, column_scale = quantize_columns(weight.T)
    expected = (steps.astype(np.int64) @ columns.astype(np.int64)) * column_scale * scale
    assert found.shape == (rows, 7)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-30)
    assert not rows or (found[-1] == 0).all()


def test_an_input_is_rounded_once_for_all_its_readers() -> None:
    g = Builder("root")
    state = {f"layer.{name}.weight": np.ones((4, 4), np.float32) for name in ("q", "kv")}
    taken = Weights(state, Precisions.of("int8"))
    for name in state:
        taken.linear(g, "x", name)
    assert [node.op_type for node in g.nodes].count("QuantizeLinear") == 1


def test_a_matrix_with_a_negative_only_row_keeps_its_sign() -> None:
    g = Builder("root")
    output = Weights({"a.w.weight": np.eye(3, dtype=np.float32)}, Precisions.of("int8")).linear(g, "x", "a.w.weight")
    x = np.array([[-1.0, -0.5, 0.0]], np.float32)
    np.testing.assert_allclose(run_one(g, output, x), x, atol=0.5 / 127)


def can_tip(config: ModelConfig) -> bool:
    """Return whether a token still has a choice where everything is on: its best experts, heads, its window."""
    best = config.heads.routing == "top_k" or (config.heads.routing == "adaptive" and config.most_heads < 4)
    best = best or config.ffn.candidates < config.num_experts
    return best or (config.has_windows and config.attention.window_kind == "learned")


@each("name", [name for name in COVER if not can_tip(MODELS[name])])
def test_int8_says_nearly_what_the_rounded_weights_say(name: str) -> None:
    """With everything on no decision can change; the rounding of activations remains, a few percent.

    Of the middle token: sharp head weights and contextual positions make single tokens of so small a model twice that,
    and the norms of recurrent mixers, over heads of 8, all of them.
    """
    limits, ids = everything_on(MODELS[name]), tiny_ids(2, batch=1, time=24)
    graph_out = Sequences(graph_of(name, "int8")).run(ids.numpy(), limits)
    with torch.no_grad():
        model = rounded_model(model_of(name), "portable", Precisions.of("int8"))
        expected = model(ids, limits).logits.numpy()
    error = np.sqrt(((graph_out.logits - expected) ** 2).mean(-1) / (expected**2).mean())  # (1, T)
    assert 1e-4 < np.median(error) < (0.15 if MODELS[name].has_states else 0.05)


@each("name", COVER)
def test_int8_gives_a_token_the_same_alone_in_a_prompt_and_in_a_batch(name: str) -> None:
    limits, ids = busy_thresholds(MODELS[name]), tiny_ids(2, batch=3, time=24).numpy()
    graph = graph_of(name, "int8")
    alone = Sequences(graph).steps(ids[:1], limits)
    prompt = Sequences(graph).run(ids[:1], limits)
    batch = row(Sequences(graph, 3).steps(ids, limits, limits, limits), 0)
    parts = Sequences(graph)
    in_parts = joined([parts.run(ids[:1, at], limits) for at in (slice(0, 9), slice(9, 10), slice(10, 24))])
    for other in (prompt, batch, in_parts):
        same_decisions(other, alone)
        np.testing.assert_array_equal(other.logits, alone.logits)


def test_int8_of_a_deep_model_decodes_bit_for_bit_as_its_prompt() -> None:
    """A difference in the last bit can become a step of the next quantisation, more likely in a deep model."""
    config = variant(dim=128, num_layers=10, context_length=96, ffn={"num_experts": 4, "expert_dim": 64})
    model = Transformer(config)
    season(model, seed=0)
    graph = Graph(build(config, weights_of(model), Precisions.of("int8")), config)
    limits, ids = busy_thresholds(config), tiny_ids(2, batch=1, time=96).numpy()
    prompt = Sequences(graph, capacity=96).run(ids, limits)
    alone = Sequences(graph, capacity=96).steps(ids, limits)
    same_decisions(alone, prompt)
    np.testing.assert_array_equal(alone.logits, prompt.logits)


def outlier_model(name: str) -> tuple[Graph, ThresholdTensors]:
    """Build the int8 graph of a model in which token OUTLIER has an embedding with one huge number."""
    state = weights_of(model_of(name))
    embedding = 0.1 * state["embedding.weight"]
    embedding[OUTLIER, 3] = 60.0
    proto = build(MODELS[name], state | {"embedding.weight": embedding}, Precisions.of("int8"))
    return Graph(proto, MODELS[name]), busy_thresholds(MODELS[name])


def neighbours_change(graph: Graph, limits: ThresholdTensors) -> tuple[float, float]:
    """Measure the largest change of a token's logits when OUTLIER follows it, and when OUTLIER is in the same batch."""
    ids = tiny_ids(2, batch=3, time=8).numpy() % OUTLIER
    with_outlier = ids.copy()
    with_outlier[0, -1] = OUTLIER
    prompt, other = [Sequences(graph).run(some[:1], limits).logits[0, :-1] for some in (ids, with_outlier)]
    with_outlier = ids.copy()
    with_outlier[1:] = OUTLIER
    batch, beside = [Sequences(graph, 3).steps(some, limits, limits, limits).logits[0] for some in (ids, with_outlier)]
    return float(np.abs(prompt - other).max()), float(np.abs(batch - beside).max())


@pytest.mark.parametrize("name", ["top_p", "dense", "shared_tied_project", "both_none"])
def test_an_outlier_does_not_change_its_neighbours(name: str) -> None:
    in_prompt, in_batch = neighbours_change(*outlier_model(name))
    assert (in_prompt, in_batch) == (0, 0)


@pytest.fixture
def one_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantise wrongly, with one scale for the whole tensor, as DynamicQuantizeLinear does."""

    def whole(g: Builder, x: str) -> tuple[str, str]:
        largest = g.op("ReduceMax", g.op("Abs", x), keepdims=1)
        scale = g.op("Max", g.op("Mul", largest, g.scalar(1 / 127)), g.scalar(1e-30))
        steps = g.op("QuantizeLinear", g.op("Div", x, scale), g.scalar(1.0), g.scalar(weights.ZERO_POINT))
        ones = g.op("Expand", scale, g.op("Concat", g.op("Shape", x, start=0, end=1), g.int64(1), axis=0))
        return steps, ones

    for module in (weights, dispatch, output_head):
        assert module.quantize_rows is quantize_rows
        monkeypatch.setattr(module, "quantize_rows", whole)


@pytest.mark.parametrize("name", ["top_p", "dense", "shared_tied_project", "both_none"])
@pytest.mark.usefixtures("one_scale")
def test_with_one_scale_for_the_whole_tensor_it_would(name: str) -> None:
    """With one scale for all rows the same models fail by far, so the tests above can fail."""
    in_prompt, in_batch = neighbours_change(*outlier_model(name))
    assert min(in_prompt, in_batch) > 100 * TOLERANCE["int8"]


@each("name", COVER)
def test_bf16_decides_and_says_what_torch_does_with_the_rounded_weights(name: str) -> None:
    model = rounded_model(model_of(name), "portable", Precisions.of("bf16"))
    limits, ids = busy_thresholds(MODELS[name]), tiny_ids(6 if name == "relu_experts" else 4, batch=1, time=24)
    plain = judge(model, ids, limits)
    assert not plain.near_ties().any(), "choose another seed: these decisions may fall either way"
    graph_out = Sequences(graph_of(name, "bf16")).run(ids.numpy(), limits)
    same_decisions(graph_out, plain)
    np.testing.assert_allclose(graph_out.logits, plain.logits, rtol=0, atol=TOLERANCE["bf16"])


@pytest.mark.parametrize("name", COVER)
def test_bf16_stores_matrices_in_two_bytes_and_widens_them_once(name: str, tmp_path: Path) -> None:
    """ONNX Runtime does so when it loads the graph: what it runs then has no such Cast."""
    proto, state = graph_proto(name, "bf16"), weights_of(model_of(name))
    stored = [t for t in initializers(proto) if t.data_type == onnx.TensorProto.BFLOAT16]
    assert {t.name.removesuffix(".bf16").rstrip("0123456789").rstrip(".") for t in stored} >= {
        weight.rstrip("0123456789").rstrip(".") for weight, value in state.items() if is_matrix(weight, value.ndim)
    }
    optimised = Graph(proto, MODELS[name]).optimised(tmp_path / "optimised.onnx")
    assert not [node.name for node in nodes(optimised) if "widen" in node.name]


@each("precision", ["int8", "int4"])
@each("name", ["top_p", "both_none", "everything_project"])
def test_int4_is_stored_as_int8_of_the_numbers_rounded_to_int4(name: str, precision: Precision) -> None:
    """So it says what torch says with these numbers, but for the rounding of activations."""
    state = weights_of(model_of(name))
    written = {t.name: onnx.numpy_helper.to_array(t) for t in initializers(graph_proto(name, precision))}
    for weight in (weight for weight, value in state.items() if is_matrix(weight, value.ndim)):
        own = getattr(Precisions.of(precision), part_of(weight))
        matrix = state[weight] if state[weight].ndim == 2 else state[weight].swapaxes(1, 2)  # (..., O, I)
        parts = [""] if matrix.ndim == 2 else [f".{e}" for e in range(len(matrix))]
        codes = np.stack([written[f"{weight}{part}.int8"] for part in parts])  # (E or 1, I, O)
        scales = written[f"{weight}.scale"].reshape(len(parts), -1)
        if weight == "embedding.weight" and not MODELS[name].tie_embeddings:
            codes = codes.swapaxes(1, 2)  # rows are looked up
        held = (codes * scales[:, None, :]).swapaxes(1, 2).reshape(matrix.shape)
        np.testing.assert_array_equal(held, rounded_matrix(matrix, "portable", own), err_msg=weight)
        assert np.abs(held - layout_rounded(matrix, own)).max() <= np.abs(matrix).max() / 127


@each("name", COVER)
def test_int4_gives_a_token_the_same_alone_and_in_a_prompt(name: str) -> None:
    limits, ids = busy_thresholds(MODELS[name]), tiny_ids(2, batch=1, time=24).numpy()
    graph = graph_of(name, "int4")
    alone, prompt = Sequences(graph).steps(ids, limits), Sequences(graph).run(ids, limits)
    same_decisions(prompt, alone)
    np.testing.assert_array_equal(prompt.logits, alone.logits)


def test_a_part_alone_can_be_quantised() -> None:
    """Wherever an input is rounded to int8, a last bit could move it by a step, so tokens stay equal to prompts."""
    state, limits = weights_of(model_of("everything_none")), busy_thresholds(MODELS["everything_none"])
    ids = tiny_ids(2, batch=1, time=24).numpy()
    for part in ("experts", "attention", "embedding", "head"):
        precisions = Precisions.of("fp32").model_copy(update={part: "int8"})
        proto = build(MODELS["everything_none"], state, precisions)
        integers = {t.name for t in initializers(proto) if t.name.endswith(".int8")}
        assert integers
        assert {part_of(name.removesuffix(".int8")) for name in integers} == {part}
        graph = Graph(proto, MODELS["everything_none"])
        alone, prompt = Sequences(graph).steps(ids, limits), Sequences(graph).run(ids, limits)
        same_decisions(prompt, alone)
        np.testing.assert_array_equal(prompt.logits, alone.logits)


def test_routers_norms_and_rotary_tables_stay_fp32() -> None:
    proto = build(MODELS["both_none"], weights_of(model_of("both_none")), Precisions.of("int8"))
    kept = {t.name for t in initializers(proto) if t.data_type == onnx.TensorProto.FLOAT and ":" not in t.name}
    matrices = {name for name in kept if not name.endswith(".scale")}
    assert matrices == {name for name in weights_of(model_of("both_none")) if "router" in name or "norm" in name} | {
        "rotary.cos",
        "rotary.sin",
    }


def test_uint8_rows_are_what_the_fast_kernel_takes() -> None:
    """MatMulInteger with a signed left side is about 15 times slower; see docs/decisions/0001."""
    g = Builder("root")
    quantize_rows(g, "x")
    (zero,) = [t for t in g.initializers.values() if t.data_type == UINT8]
    assert zero.raw_data == bytes([128])
