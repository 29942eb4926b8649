"""Windows: rings that wrap, what a token sees in them, and the window it reports."""

import itertools

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper
from support.cases import each, each_covered
from support.cover import covering
from support.graphs.bare_graph import (
    MODELS,
    Graph,
    Sequences,
    graph_of,
    model_of,
    proto_of,
    row,
    same_decisions,
    together,
    weights_of,
)
from support.models import HAS_WINDOWS, busy_thresholds, decisions, judge, tiny_ids

from adaptive_lm.export.graph.builder import BOOL, FLOAT, INT64, IR_VERSION, OPSET
from adaptive_lm.export.graph.builder import Graph as Builder
from adaptive_lm.export.model.attention.window import behind_the_seam, ring_of, seen_in_ring
from adaptive_lm.export.model.transformer import build
from adaptive_lm.export.proof.parity import TOLERANCE
from adaptive_lm.runtime.format.manifest import Precision

T = 30  # windows are 4 to 14: a ring of single tokens turns up to seven times
FP32 = TOLERANCE["fp32"]
FEW = covering({name: MODELS[name] for name in HAS_WINDOWS})
"""Models that together have every mechanism that meets windows."""


@each_covered(("name", "longest"), itertools.product(HAS_WINDOWS, [1, 3, 7, T]), FEW)
def test_rings_of_every_size_give_what_the_plain_model_and_torch_give(name: str, longest: int) -> None:
    """A ring for passes of 7 tokens is larger than one for single tokens; the plain model keeps everything."""
    ids, limits = tiny_ids(2, batch=1, time=T), busy_thresholds(MODELS[name])
    plain = judge(model_of(name), ids, limits)
    assert not plain.near_ties().any(), "choose another seed: these decisions may fall either way"
    with torch.no_grad():
        out = model_of(name)(ids, limits)
    for size in {1, longest}:
        sequences = Sequences(graph_of(name), longest=longest, fill=1e3)  # what was never written is never seen
        graph_out = sequences.parts(ids.numpy(), size, limits)
        same_decisions(graph_out, plain)
        np.testing.assert_array_equal(graph_out.windows, decisions(out)["windows"].numpy())
        np.testing.assert_allclose(graph_out.logits, plain.logits, rtol=0, atol=FP32)
        np.testing.assert_allclose(graph_out.logits, out.logits.numpy(), rtol=0, atol=FP32)
        np.testing.assert_array_equal(graph_out.new_lengths, plain.cache_lengths)


@each("precision", ["fp32", "int8"])
@each_covered("name", HAS_WINDOWS, FEW)
def test_a_batch_of_sequences_whose_rings_have_turned_differently(name: str, precision: Precision) -> None:
    graph, starts, steps = graph_of(name, precision), (0, 9, 17), 12
    ids, limits = tiny_ids(2, batch=3, time=T).numpy(), busy_thresholds(MODELS[name])
    singles, alone = [], []
    for b, start in enumerate(starts):
        for keep in (singles, alone):
            keep.append(Sequences(graph, longest=5))
            if start:
                keep[-1].parts(ids[b : b + 1, :start], 5, limits)
    rest = np.stack([ids[b, start : start + steps] for b, start in enumerate(starts)])
    batch = together(*singles).steps(rest, limits, limits, limits)
    for b in range(3):
        expected = alone[b].steps(rest[b : b + 1], limits)
        same_decisions(row(batch, b), expected)
        if precision == "int8":  # bit for bit, since the rings are of one size
            np.testing.assert_array_equal(batch.logits[b], expected.logits[0])
        np.testing.assert_allclose(batch.logits[b], expected.logits[0], rtol=0, atol=FP32)


@each_covered("name", HAS_WINDOWS, FEW)
def test_int8_gives_a_token_the_same_alone_and_in_parts_of_a_prompt(name: str) -> None:
    ids, limits = tiny_ids(2, batch=1, time=T).numpy(), busy_thresholds(MODELS[name])
    alone, parts = (Sequences(graph_of(name, "int8"), longest=7).parts(ids, n, limits) for n in (1, 7))
    same_decisions(parts, alone)
    np.testing.assert_array_equal(parts.logits, alone.logits)


@pytest.mark.parametrize("name", ["window_fixed", "learned_project", "window_none", "cope_window_project"])
def test_a_step_writes_one_cell_of_a_ring_and_moves_nothing(name: str) -> None:
    config = MODELS[name]
    ids, limits = tiny_ids(2, batch=1, time=T).numpy(), busy_thresholds(config)
    sequences = Sequences(graph_of(name), longest=1)
    for t in range(T):
        lengths, before = sequences.lengths, sequences.content()
        graph_out = sequences.run(ids[:, t : t + 1], limits)
        for key, after in sequences.content().items():
            layer = int(key.rsplit(".", 1)[1])
            written = config.depth.skipped_kv == "project" or graph_out.layers_run[layer, 0, 0]
            changed = np.flatnonzero((after != before[key]).any((0, 1, 3)))
            assert set(changed) <= ({lengths[layer, 0] % after.shape[2]} if written else set()), key
            if layer and not key.startswith("counted"):  # the first layer writes the same for the same token
                assert len(changed) == written


def test_a_ring_smaller_than_agreed_is_found_out() -> None:
    """With one cell less than window + T - 1 the first token of a pass reads what the last has overwritten."""
    ids, limits = tiny_ids(2, batch=1, time=T), busy_thresholds(MODELS["window_fixed"])
    sequences = Sequences(graph_of("window_fixed"), longest=6)
    sequences.longest = 7
    graph_out = sequences.parts(ids.numpy(), 7, limits)
    plain = judge(model_of("window_fixed"), ids, limits)
    assert np.abs(graph_out.logits - plain.logits).max() > 100 * FP32


def run(g: Builder, inputs: dict[str, tuple[int, np.ndarray]], outputs: dict[str, int]) -> list[np.ndarray]:
    infos = [helper.make_tensor_value_info(n, t, [None] * v.ndim) for n, (t, v) in inputs.items()]
    ends = [helper.make_tensor_value_info(n, t, None) for n, t in outputs.items()]
    graph = helper.make_graph(g.nodes, "one", infos, ends, list(g.initializers.values()))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {name: value for name, (_, value) in inputs.items()})
    return found


@pytest.mark.parametrize("passed", [1, 3, 5])
def test_what_is_seen_in_a_ring_is_what_a_list_of_its_tokens_says(passed: int) -> None:
    """The ring is kept here as a list of places per cell, written pass by pass; windows of every size up to most."""
    g, most = Builder("g"), 6
    ring = ring_of(g, "cache")
    seen = g.op("Identity", seen_in_ring(g, ring, "places", "reach"))
    behind = g.op("Identity", behind_the_seam(g, ring, "places"))
    random = np.random.default_rng(0)
    for size in {most + passed - 1, most + passed + 2, 40}:
        held = np.full(size, -1)
        for begin in range(0, 40, passed):
            places = np.arange(begin, min(begin + passed, 40))
            held[places % size] = places
            windows = random.integers(1, most + 1, len(places))
            inputs = {
                "cache": (FLOAT, np.zeros((1, 1, size, 1), np.float32)),
                "places": (INT64, places[None]),
                "reach": (INT64, np.minimum(windows, places + 1)[None]),
            }
            found, older = run(g, inputs, {seen: BOOL, behind: BOOL})
            distance = places[:, None] - held  # (T, C)
            expected = (held >= 0) & (distance >= 0) & (distance < windows[:, None])
            np.testing.assert_array_equal(found[0, 0], expected)
            in_order = np.concatenate([held[older[0, 0, 0]], held[~older[0, 0, 0]]])
            assert (np.diff(in_order[in_order >= 0]) == 1).all(), "those behind the seam come before all others"


def test_an_entropy_window_is_the_number_that_training_found() -> None:
    """A buffer of the controller, so it is no parameter, and yet part of the graph."""
    name = "window_entropy"
    state = weights_of(model_of(name))
    windows = {key: value for key, value in state.items() if key.endswith("window_controller.window")}
    assert [int(value) for value in windows.values()] == [3, 5, 7, 9]
    graph_out = Sequences(graph_of(name)).run(tiny_ids(2, batch=1, time=T).numpy(), busy_thresholds(MODELS[name]))
    assert graph_out.windows is not None
    assert (graph_out.windows[:, 0] == np.array([3, 5, 7, 9])[:, None]).all()
    other = Graph(build(MODELS[name], state | {key: np.array(4) for key in windows}), MODELS[name])
    moved = Sequences(other).run(tiny_ids(2, batch=1, time=T).numpy(), busy_thresholds(MODELS[name]))
    assert moved.windows is not None
    assert (moved.windows == 4).all()
    assert not np.allclose(moved.logits, graph_out.logits, atol=FP32)


def test_layers_with_windows_have_a_capacity_of_their_own() -> None:
    shapes = {
        value.name: value.type.tensor_type.shape.dim[2].dim_param for value in proto_of("length_none").graph.input
        if value.name.startswith("past_key")
    }  # fmt: skip
    assert shapes == {"past_key.0": "C.0", "past_key.1": "C.1", "past_key.2": "C", "past_key.3": "C.3"}
