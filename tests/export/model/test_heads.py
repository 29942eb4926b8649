"""Routed heads in the graph: two executions of one choice, and heads not chosen are not multiplied."""

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from support.cases import each, each_covered
from support.cover import covering
from support.graphs.bare_graph import (
    MODELS,
    Graph,
    GraphOutputs,
    Sequences,
    everything_on,
    graph_of,
    initializers,
    joined,
    model_of,
    proto_of,
    row,
    same_decisions,
    weights_of,
)
from support.models import ROUTES_HEADS, busy_thresholds, decisions, judge, tiny_ids, variant

from adaptive_lm.export.model.attention.heads import Execution, execution_of
from adaptive_lm.export.model.transformer import build
from adaptive_lm.export.proof.parity import TOLERANCE
from adaptive_lm.train.model import ThresholdTensors

T = 24
FP32 = TOLERANCE["fp32"]
FEW = covering({name: MODELS[name] for name in ROUTES_HEADS})
"""Models that together have every mechanism that meets routed heads."""
EXECUTIONS: list[Execution] = ["masked", "sliced"]


@each("execution", EXECUTIONS)
@each_covered("name", ROUTES_HEADS, FEW)
def test_both_executions_choose_and_say_what_torch_and_the_plain_model_do(name: str, execution: Execution) -> None:
    ids, limits = tiny_ids(2, batch=1, time=T), busy_thresholds(MODELS[name])
    plain = judge(model_of(name), ids, limits)
    assert not plain.near_ties().any(), "choose another seed: these decisions may fall either way"
    with torch.no_grad():
        out = model_of(name)(ids, limits)
    sequences = (Sequences(graph_of(name, heads=execution)) for _ in range(3))
    whole, single, parts = (one.parts(ids.numpy(), n, limits) for one, n in zip(sequences, (T, 1, 7), strict=True))
    for graph_out in (whole, single, parts):
        same_decisions(graph_out, plain)
        np.testing.assert_array_equal(graph_out.selected_heads, decisions(out)["selected_heads"].numpy())
        np.testing.assert_allclose(graph_out.logits, out.logits.numpy(), rtol=0, atol=FP32)
        np.testing.assert_allclose(graph_out.logits, plain.logits, rtol=0, atol=FP32)
    used, attends = plain.selected_heads.any(-1), attending(name)
    assert np.array_equal(used[attends], plain.layers_run[attends]), "no head where it is skipped, one where it runs"
    assert not used[~attends].any(), "a recurrent mixer has no heads to choose"
    numbers = plain.selected_heads[attends].sum(-1)[plain.layers_run[attends]]
    assert MODELS[name].heads.routing == "top_k" or len(set(numbers)) > 1, "these thresholds show nothing"


@each_covered("name", ROUTES_HEADS, FEW)
def test_sequences_of_a_batch_choose_their_own_heads(name: str) -> None:
    ids, limits = tiny_ids(2, batch=3, time=12).numpy(), busy_thresholds(MODELS[name])
    levels = [limits._replace(head_top_p=level + 0 * limits.head_top_p) for level in (1.0, 0.5, 0.05)]
    batch = Sequences(graph_of(name, heads="sliced"), 3).steps(ids, *levels)
    for b in range(3):
        alone = Sequences(graph_of(name, heads="sliced")).steps(ids[b : b + 1], levels[b])
        same_decisions(row(batch, b), alone)
        np.testing.assert_allclose(batch.logits[b], alone.logits[0], rtol=0, atol=FP32)
    assert batch.selected_heads is not None
    heads, runs = batch.selected_heads[attending(name)], batch.layers_run[attending(name)]
    numbers = [float(heads[:, b].sum(-1)[runs[:, b]].mean()) for b in range(3)]
    if MODELS[name].heads.routing != "top_k":
        assert numbers[0] == MODELS[name].most_heads
        assert numbers == sorted(numbers, reverse=True)
        assert len(set(numbers)) >= (3 if attending(name).all() else 2), "a single layer may use one head at both"


@each("execution", EXECUTIONS)
@each_covered("name", ROUTES_HEADS, FEW)
def test_int8_gives_a_token_the_same_alone_in_a_prompt_and_in_a_batch(name: str, execution: Execution) -> None:
    limits, ids = busy_thresholds(MODELS[name]), tiny_ids(2, batch=3, time=T).numpy()
    graph = graph_of(name, "int8", execution)
    alone = Sequences(graph).steps(ids[:1], limits)
    others = [
        Sequences(graph).run(ids[:1], limits),
        Sequences(graph).parts(ids[:1], 7, limits),
        row(Sequences(graph, 3).steps(ids, limits, limits, limits), 0),
    ]
    for other in others:
        same_decisions(other, alone)
        np.testing.assert_array_equal(other.logits, alone.logits)


@each(("level", "used"), [(0.0, "least"), (1e-6, "least"), (1.0, "most")])
@each("execution", EXECUTIONS)
@each_covered("name", ROUTES_HEADS, FEW)
def test_the_ends_of_the_dial_use_the_fewest_heads_or_the_most(
    name: str, execution: Execution, level: float, used: str
) -> None:
    config = MODELS[name]
    limits = everything_on(config)
    limits = limits._replace(head_top_p=level * limits.head_top_p)
    graph_out = Sequences(graph_of(name, heads=execution)).run(tiny_ids(2, batch=1).numpy(), limits)
    assert graph_out.selected_heads is not None
    heads = graph_out.selected_heads[attending(name)]
    assert (heads.sum(-1) == getattr(config, f"{used}_heads")).all()
    assert heads[..., : config.heads.shared_heads].all()
    assert np.isfinite(graph_out.logits).all()


def attending(name: str) -> np.ndarray:
    """Return which layers have attention, (L,) bool."""
    return np.array([MODELS[name].attends(layer) for layer in range(MODELS[name].num_layers)])


def outputs_with(
    name: str, execution: Execution, state: dict[str, np.ndarray], limits: ThresholdTensors
) -> GraphOutputs:
    graph = Graph(build(MODELS[name], state, heads=execution), MODELS[name])
    return Sequences(graph).run(tiny_ids(2, batch=1, time=4).numpy(), limits)


def with_nan(name: str, layer: int, head: int) -> dict[str, np.ndarray]:
    """Both slices of one head."""
    state, width = weights_of(model_of(name)), MODELS[name].resolved_head_dim
    slices = slice(head * width, (head + 1) * width)
    for part, at in (("q", (slices,)), ("o", (slice(None), slices))):
        key = f"layers.{layer}.attention.{part}.weight"
        state[key] = state[key].copy()
        state[key][at] = np.nan
    return state


def test_a_head_that_no_token_chose_multiplies_no_row_and_a_chosen_one_does() -> None:
    """Its matrices can be full of nan, as those of an expert can. All heads in one product do multiply it."""
    name = "heads_top_p"
    limits = everything_on(MODELS[name])
    limits = limits._replace(head_top_p=0 * limits.head_top_p)
    graph_out = outputs_with(name, "sliced", weights_of(model_of(name)), limits)
    assert graph_out.selected_heads is not None
    used = graph_out.selected_heads[3].any((0, 1))
    idle, chosen = int(np.flatnonzero(~used)[0]), int(np.flatnonzero(used)[0])
    poisoned = outputs_with(name, "sliced", with_nan(name, 3, idle), limits)
    np.testing.assert_array_equal(poisoned.logits, graph_out.logits)
    assert np.isnan(outputs_with(name, "sliced", with_nan(name, 3, chosen), limits).logits).any()
    assert np.isnan(outputs_with(name, "masked", with_nan(name, 3, idle), limits).logits).any()


def test_the_slices_are_those_of_the_checkpoint() -> None:
    state = weights_of(model_of("heads_shared"))
    written = {t.name: numpy_helper.to_array(t) for t in initializers(proto_of("heads_shared", heads="sliced"))}
    for layer in range(4):
        q, o = (state[f"layers.{layer}.attention.{part}.weight"] for part in "qo")  # (H*W, D), (D, H*W)
        for head in range(6):
            rows = slice(8 * head, 8 * head + 8)
            np.testing.assert_array_equal(written[f"layers.{layer}.attention.q.weight.{head}"], q[rows].T)
            np.testing.assert_array_equal(written[f"layers.{layer}.attention.o.weight.{head}"], o[:, rows].T)
        assert f"layers.{layer}.attention.q.weight" not in written


@pytest.mark.parametrize(
    ("dim", "head_dim", "fp32", "int8"),
    [(128, 32, "masked", "masked"), (512, 32, "masked", "masked"), (512, 64, "sliced", "masked"),
     (1024, 64, "sliced", "masked"), (1024, 128, "sliced", "sliced")],
)  # fmt: skip
def test_heads_are_sliced_from_the_size_at_which_that_was_measured_faster(
    dim: int, head_dim: int, fp32: str, int8: str
) -> None:
    config = variant(dim=dim, head_dim=head_dim, heads={"routing": "top_p"})
    assert (execution_of(config, "fp32"), execution_of(config, "int8")) == (fp32, int8)


def test_of_equal_heads_the_first_are_taken_while_the_mass_before_is_below_the_threshold() -> None:
    """A router of zeros gives each of four a quarter: the second has a mass of exactly 1/4 before it."""
    config = variant(heads={"routing": "top_p", "heads_per_token": 2})
    state = weights_of(model_of("heads_top_p"))
    state = {name: 0 * value if "head_router" in name else value for name, value in state.items()}
    state = {name: value for name, value in state.items() if "per_token" not in name}
    graph = Graph(build(config, state), config)
    for level, used in ((0.25, 1), (0.2501, 2), (0.5, 2), (0.75, 3), (0.7501, 4)):
        limits = everything_on(config)
        limits = limits._replace(head_top_p=level * limits.head_top_p)
        graph_out = Sequences(graph).run(tiny_ids(2, batch=1).numpy(), limits)
        assert graph_out.selected_heads is not None
        np.testing.assert_array_equal(
            graph_out.selected_heads, np.broadcast_to(np.arange(4) < used, graph_out.selected_heads.shape)
        )


@pytest.mark.parametrize("name", ["heads_shared", "everything_none"])
def test_two_threads_give_the_same_ten_times(name: str) -> None:
    graph = Graph(proto_of(name, heads="sliced"), MODELS[name], threads=2)
    ids, limits = tiny_ids(2, batch=1, time=T).numpy(), busy_thresholds(MODELS[name])
    runs = [joined([Sequences(graph).run(ids, limits)]) for _ in range(10)]
    assert max(float(np.abs(run.logits - runs[0].logits).max()) for run in runs) <= 1e-6
