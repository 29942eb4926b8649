"""The experts in the graph: an expert that no token chose multiplies no row, and sums do not depend on threads."""

import numpy as np
import onnx
import pytest
from support.cases import each
from support.cover import in_each
from support.graphs.bare_graph import (
    COVER,
    MODELS,
    Graph,
    Sequences,
    everything_on,
    graph_of,
    model_of,
    nodes,
    proto_of,
    weights_of,
)
from support.models import busy_thresholds, season, tiny_ids, variant

from adaptive_lm.export.model.transformer import build
from adaptive_lm.runtime.format.manifest import Precision
from adaptive_lm.train.model import Transformer


@each(("name", "precision"), in_each(MODELS, COVER, ["fp32", "int8"]))
def test_nothing_is_scattered_with_a_reduction(name: str, precision: Precision) -> None:
    """ONNX Runtime adds without a lock; see docs/decisions/0002."""
    for node in nodes(proto_of(name, precision)):
        if node.op_type.startswith("Scatter"):
            reductions = [onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == "reduction"]
            assert reductions in ([], [b"none"]), node.name


def test_two_threads_and_every_expert_give_the_same_ten_times() -> None:
    """Large enough for ONNX Runtime to share out the rows: with a ScatterND that adds, runs differed by up to 9e-2."""
    config = variant(dim=64, context_length=256, ffn={"num_experts": 8, "expert_dim": 64})
    model = Transformer(config)
    season(model, seed=0)
    graph = Graph(build(config, weights_of(model)), config, threads=2)
    ids, limits = tiny_ids(time=192, batch=1).numpy(), everything_on(config)
    runs = [Sequences(graph, capacity=192).run(ids, limits) for _ in range(10)]
    assert all(run.selected_experts.all() for run in runs)
    assert max(float(np.abs(run.logits - runs[0].logits).max()) for run in runs) <= 1e-6
    alone = Graph(graph.proto, config, threads=1)
    one_thread = Sequences(alone, capacity=192).run(ids, limits).logits
    np.testing.assert_allclose(runs[0].logits, one_thread, rtol=0, atol=1e-5)


def with_nan(name: str, layer: int, expert: int) -> dict[str, np.ndarray]:
    state = weights_of(model_of(name))
    for part in ("gate_up", "down"):
        key = f"layers.{layer}.moe.{part}"
        state[key] = state[key].copy()
        state[key][expert] = np.nan
    return state


def test_an_expert_that_no_token_chose_changes_nothing_and_a_chosen_one_does() -> None:
    """The matrices of an expert without a token are multiplied by no row, so even nan in them is never seen."""
    name = "eight_experts"
    ids, limits = tiny_ids(2, batch=1, time=4).numpy(), busy_thresholds(MODELS[name])
    limits = limits._replace(router_top_p=0 * limits.router_top_p + 1e-6)
    graph_out = Sequences(graph_of(name)).run(ids, limits)
    assert (graph_out.selected_experts.sum(-1) == 1).all()
    used = graph_out.selected_experts[1].any((0, 1))
    state = with_nan(name, 1, int(np.flatnonzero(~used)[0]))
    poisoned = Sequences(Graph(build(MODELS[name], state), MODELS[name])).run(ids, limits)
    np.testing.assert_array_equal(poisoned.logits, graph_out.logits)
    state = with_nan(name, 1, int(np.flatnonzero(used)[0]))
    assert np.isnan(Sequences(Graph(build(MODELS[name], state), MODELS[name])).run(ids, limits).logits).any()


@pytest.mark.parametrize(("top_p", "used"), [(1e-6, 1), (1.0, 8)])
def test_the_ends_of_the_dial_use_one_expert_or_all(top_p: float, used: int) -> None:
    limits = everything_on(MODELS["eight_experts"])
    limits = limits._replace(router_top_p=top_p * limits.router_top_p)
    graph_out = Sequences(graph_of("eight_experts")).run(tiny_ids(2, batch=1).numpy(), limits)
    assert (graph_out.selected_experts.sum(-1) == used).all()


def test_top_k_uses_k_whatever_the_threshold() -> None:
    for limits in (everything_on(MODELS["top_k"]), busy_thresholds(MODELS["top_k"])):
        graph_out = Sequences(graph_of("top_k")).run(tiny_ids(2, batch=1).numpy(), limits)
        assert (graph_out.selected_experts.sum(-1) == 2).all()


def test_of_equal_experts_the_first_are_taken_while_the_mass_before_is_below_the_threshold() -> None:
    """A router of zeros gives each of four a quarter: the second has a mass of exactly 1/4 before it."""
    config = MODELS["top_p"]
    state = weights_of(model_of("top_p"))
    state |= {name: 0 * value for name, value in state.items() if "router" in name}
    graph = Graph(build(config, state), config)
    for top_p, used in ((0.25, 1), (0.2501, 2), (0.5, 2), (0.75, 3), (0.7501, 4)):
        limits = everything_on(config)
        limits = limits._replace(router_top_p=top_p * limits.router_top_p)
        graph_out = Sequences(graph).run(tiny_ids(2, batch=1).numpy(), limits)
        expected = np.broadcast_to(np.arange(4) < used, graph_out.selected_experts.shape)
        np.testing.assert_array_equal(graph_out.selected_experts, expected)
