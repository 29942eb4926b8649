"""The recurrence and the short convolution of the graph, compared with a loop of numpy.

M sequences, n rows, H heads, V values, K keys, C channels, J tokens that a convolution sees.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from support.cases import each
from support.graphs.bare_graph import graphs

from adaptive_lm.export.graph.builder import BOOL, FLOAT, INT64, IR_VERSION, OPSET, Graph
from adaptive_lm.export.graph.weights import Weights
from adaptive_lm.export.model.mixers.convolution import short_convolution
from adaptive_lm.export.model.mixers.recurrence import Terms, recurrence
from adaptive_lm.export.model.mixers.steps import Steps, recall, remember, some_tokens

H, V, K, B = 3, 5, 7, 4
FORMS = ("fixed", "per_head", "per_key", "delta")


class Case(NamedTuple):
    """The terms of n rows, and the states of B sequences before them."""

    terms: dict[str, np.ndarray]
    state: np.ndarray  # (B, H, V, K)


def case_of(form: str, rows: int, seed: int = 0) -> Case:
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    w = {"fixed": (H, 1, 1), "per_head": (rows, H, 1, 1)}.get(form, (rows, H, 1, K))
    terms = {
        "w": np.exp(-np.abs(draw(*w))),
        "v": draw(rows, H, V, 1),
        "k": draw(rows, H, 1, K),
        "r": draw(rows, H, K, 1),
    }
    if form == "delta":
        terms |= {"a": draw(rows, H, K, 1) / K, "b": draw(rows, H, 1, K)}
    return Case(terms, draw(B, H, V, K))


def by_hand(case: Case, sequences: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Run row i for sequence `sequences[i]`, one after the other; return the outputs (n, H, V) and all states."""
    state, out = case.state.astype(np.float64), []
    for i, at in enumerate(sequences):
        own = {name: (term if term.ndim == 3 else term[i]).astype(np.float64) for name, term in case.terms.items()}
        S = state[at]
        new = S * own["w"] + own["v"] * own["k"]
        if "a" in own:
            new += (S @ own["a"]) * own["b"]
        state[at] = new
        out.append((new @ own["r"])[..., 0])
    return np.stack(out), state


def session_of(
    write: Callable[[Graph], Sequence[str]], inputs: dict[str, tuple[int, int]]
) -> onnxruntime.InferenceSession:
    """Build a graph of inputs with an element type and a number of dimensions; `write` returns its outputs."""
    g = Graph("tiny")
    names = write(g)
    given = [helper.make_tensor_value_info(name, kind, [None] * rank) for name, (kind, rank) in inputs.items()]
    outs = [onnx.ValueInfoProto(name=name, type=helper.make_tensor_type_proto(FLOAT, None)) for name in names]
    graph = helper.make_graph(g.nodes, "tiny", given, outs, list(g.initializers.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def graph_of(form: str, *, some: bool) -> onnxruntime.InferenceSession:
    """Return a session of the recurrence: for all rows, or for those of `rows` (n,) among B sequences."""
    names = case_of(form, 1).terms

    def write(g: Graph) -> Sequence[str]:
        terms = Terms(**{name: name for name in names}, fixed=form == "fixed")
        every = Steps("single", "number", None, "positions")
        steps = some_tokens(g, "rows", "one_sequence", every) if some else every
        out, state = recurrence(g, terms, steps, recall(g, steps, "state"), H, V)
        return [out, remember(g, steps, "state", state)]

    own = {"rows": (INT64, 1), "one_sequence": (BOOL, 1)} if some else {"single": (BOOL, 1)}
    return session_of(write, {**{name: (FLOAT, term.ndim) for name, term in names.items()}, "state": (FLOAT, 4), **own})


@pytest.mark.parametrize("form", FORMS)
def test_a_prompt_and_its_tokens_one_by_one_equal_the_loop(form: str) -> None:
    case, session = case_of(form, 9), graph_of(form, some=False)
    state = case.state[:1]
    out, after = session.run(None, {**case.terms, "state": state, "single": np.array([False])})
    expected, states = by_hand(case, [0] * 9)
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(after, states[:1], rtol=0, atol=2e-5)
    outs = []
    for i in range(9):
        one = {name: term if term.ndim == 3 else term[i : i + 1] for name, term in case.terms.items()}
        step, state = session.run(None, {**one, "state": state, "single": np.array([True])})
        outs.append(step)
    np.testing.assert_array_equal(np.concatenate(outs), out, err_msg="a token has the same bits alone and in a prompt")
    np.testing.assert_array_equal(state, after)


@each("form", FORMS)
@each("sequences", [(0, 1, 2, 3), (2,), (1, 3), (3,)])
def test_a_batch_moves_the_states_of_the_sequences_that_run_and_no_other(form: str, sequences: tuple[int, ...]) -> None:
    case, session = case_of(form, len(sequences)), graph_of(form, some=True)
    given = {"rows": np.array(sequences), "one_sequence": np.array([False])}
    out, after = session.run(None, {**case.terms, "state": case.state, **given})
    expected, states = by_hand(case, sequences)
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(after, states, rtol=0, atol=2e-5)
    others = [b for b in range(B) if b not in sequences]
    np.testing.assert_array_equal(after[others], case.state[others])


@each("form", FORMS)
@each("rows", [(4,), (0, 2, 5)])
def test_the_rows_of_a_prompt_that_run_move_its_one_state_in_their_order(form: str, rows: tuple[int, ...]) -> None:
    case, session = case_of(form, len(rows)), graph_of(form, some=True)
    given = {"rows": np.array(rows), "one_sequence": np.array([True])}
    out, after = session.run(None, {**case.terms, "state": case.state[:1], **given})
    expected, states = by_hand(case, [0] * len(rows))
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(after, states[:1], rtol=0, atol=2e-5)


@pytest.mark.parametrize(("form", "most"), [("fixed", 4), ("per_head", 4), ("per_key", 4), ("delta", 7)])
def test_one_token_takes_a_handful_of_nodes(form: str, most: int) -> None:
    g = Graph("tiny")
    names = case_of(form, 1).terms
    terms = Terms(**{name: name for name in names}, fixed=form == "fixed")
    recurrence(g, terms, Steps("single", "number", None, "positions"), "state", H, V)
    (choice,) = (node for node in g.nodes if node.op_type == "If")
    branches = {each.name: each.g for each in choice.attribute}
    assert len(branches["then_branch"].node) == most
    inside = [node.op_type for graph in graphs(branches["else_branch"]) for node in graph.node]
    assert sorted(inside) == sorted([*(node.op_type for node in branches["then_branch"].node), "Scan", "Reshape"])


@each("seen", [1, 2, 4, 8])
@each("bias", [True, False])
def test_the_short_convolution_of_a_prompt_equals_its_tokens_and_the_loop(seen: int, bias: bool) -> None:
    random, channels, time = np.random.default_rng(seen), 6, 11
    weights = {"conv.weight": random.normal(size=(channels, seen))} if seen > 1 else {}
    if bias:
        weights["conv.bias"] = random.normal(size=channels)
    weights = {name: value.astype(np.float32) for name, value in weights.items()}

    def write(g: Graph) -> Sequence[str]:
        steps = Steps("single", "number", None, "")
        shape = (channels, seen)
        out, after = short_convolution(g, Weights(weights), "conv", "x", steps, "past", shape)
        return [out, after] if after else [out]

    session = session_of(write, {"x": (FLOAT, 2), **({"past": (FLOAT, 3), "number": (INT64, 1)} if seen > 1 else {})})
    x = random.normal(size=(time, channels)).astype(np.float32)
    past = random.normal(size=(1, channels, seen - 1)).astype(np.float32)

    def run(rows: np.ndarray, before: np.ndarray) -> list[np.ndarray]:
        given = {"past": before, "number": np.array([len(before)])} if seen > 1 else {}
        return [*session.run(None, {"x": rows, **given}), before][:2]

    out, after = run(x, past)
    inputs = np.concatenate([past[0].T, x]).astype(np.float64)
    taps = weights.get("conv.weight", np.ones((channels, 1)))
    plain = np.stack([(inputs[t : t + seen] * taps.T).sum(0) for t in range(time)]) + weights.get("conv.bias", 0)
    np.testing.assert_allclose(out, plain / (1 + np.exp(-plain)), rtol=0, atol=1e-5)
    if seen > 1:
        np.testing.assert_array_equal(after[0].T, inputs[-(seen - 1) :])
    state = past
    for t in range(time):
        step, state = run(x[t : t + 1], state)
        np.testing.assert_array_equal(step[0], out[t])
    np.testing.assert_array_equal(state, after)
    both, _ = run(x[:2], np.concatenate([past, past + 1]))  # two sequences, a token each
    for b in range(2):
        np.testing.assert_array_equal(both[b], run(x[b : b + 1], past + b)[0][0])
