"""The comparison with torch: equal decisions, close logits, and few near ties."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.cases import each
from support.graphs.bare_graph import MODELS, Graph, Sequences, everything_on, model_of, weights_of
from support.models import busy_thresholds, judge, tiny_ids

from adaptive_lm.export.model.transformer import build
from adaptive_lm.export.proof.margins import margins
from adaptive_lm.export.proof.parity import (
    EPSILON,
    NEAR_TIES,
    STATES_EPSILON,
    STATES_TOLERANCE,
    STATES_USUAL,
    Comparison,
    compare,
)
from adaptive_lm.export.proof.passes import Pass, torch_pass
from adaptive_lm.train.model import ThresholdTensors

L, T, E, H, V = 2, 200, 4, 6, 5


@pytest.fixture
def one() -> Pass:
    random = np.random.default_rng(0)
    return Pass(
        random.normal(size=(T, V)).astype(np.float32),
        random.random((L, T, E)) < 0.5,
        np.ones((L, T), bool),
        np.full(T, -1),
        random.random((L, T, H)) < 0.5,
        np.full((L, T), 8),
        np.zeros((L, T, 0), bool),
        np.zeros((T, 0), np.float32),
        np.full(T, 0.1),
    )


def flipped(one: Pass, token: int) -> Pass:
    """One expert differs, and everything after it a little."""
    selected, logits = one.selected_experts.copy(), one.logits.copy()
    selected[1, token, 2] ^= True
    logits[token:] += 0.5
    return replace(one, selected_experts=selected, logits=logits)


def compared(judge_: Pass, found: Pass) -> Comparison:
    result = Comparison()
    compare(result, judge_, found)
    return result


def test_the_same_is_equal(one: Pass) -> None:
    result = compared(one, one)
    assert result.passes(1e-4)
    assert result.report(1e-4) == {
        "tokens": T, "near_ties": 0, "flipped_near_ties": 0, "not_compared": 0, "wrong_decisions": 0,
        "largest_logit_difference": 0.0, "tolerance": 1e-4, "passed": True,
    }  # fmt: skip


def test_hidden_states_have_a_tolerance_of_their_own(one: Pass) -> None:
    states = np.random.default_rng(1).normal(size=(T, 8)).astype(np.float32)
    given = replace(one, hidden=states)
    for difference, passes in ((0.0, True), (9e-4, True), (2e-3, False), (np.nan, False)):
        changed = states.copy()
        changed[T - 1, 3] += difference
        result = compared(given, replace(one, hidden=changed))
        report = result.report(1e-4)
        assert result.passes(1e-4) is report["passed"] is passes
        assert report["hidden_tolerance"] == pytest.approx(1e-3)
        assert report["largest_logit_difference"] == 0.0
    assert "hidden_tolerance" not in compared(given, one).report(1e-4), "a graph that does not give them is not judged"


@pytest.mark.parametrize("which", ["selected_experts", "layers_run", "exit_layer", "selected_heads", "windows"])
def test_one_decision_that_differs_fails_whatever_the_logits(one: Pass, which: str) -> None:
    changed = getattr(one, which).copy()
    if which == "exit_layer":
        changed[7] = 0
    else:
        changed[1, 7] ^= True
    result = compared(one, replace(one, **{which: changed}))
    assert result.wrong_decisions == 1
    assert not result.passes(1e-4)
    assert result.failures == ["token 7: decisions differ at a margin of 1.00e-01"]


def test_a_near_tie_that_fell_the_other_way_is_counted_and_ends_the_window(one: Pass) -> None:
    tied = replace(one, margins=np.where(np.arange(T) == 150, EPSILON / 2, 0.1))
    result = compared(tied, flipped(one, 150))
    assert (result.near_ties, result.flipped, result.not_compared, result.wrong_decisions) == (1, 1, 49, 0)
    assert result.largest_difference == 0, "what stands before the tie is compared, what follows is not"
    assert result.passes(1e-4)


def test_a_difference_before_a_tie_is_no_tie(one: Pass) -> None:
    tied = replace(one, margins=np.where(np.arange(T) == 150, EPSILON / 2, 0.1))
    assert compared(tied, flipped(one, 149)).wrong_decisions == 1


def test_a_difference_of_the_logits_before_a_tie_still_counts(one: Pass) -> None:
    tied = replace(one, margins=np.where(np.arange(T) == 150, EPSILON / 2, 0.1))
    found = flipped(one, 150)
    found.logits[149, 3] += 0.25
    assert compared(tied, found).largest_difference == pytest.approx(0.25)


def test_too_many_near_ties_fail_even_if_none_flipped(one: Pass) -> None:
    for ties, passes in ((int(NEAR_TIES * T), True), (int(NEAR_TIES * T) + 1, False)):
        result = compared(replace(one, margins=np.where(np.arange(T) < ties, 0.0, 0.1)), one)
        assert result.near_ties == ties
        assert result.passes(1e-4) is passes


@pytest.mark.parametrize("value", [np.nan, np.inf, 2e-4])
def test_a_logit_that_is_off_or_not_a_number_fails(one: Pass, value: float) -> None:
    found = replace(one, logits=one.logits.copy())
    found.logits[-1, 0] += value
    result = compared(one, found)
    assert result.largest_difference == (pytest.approx(2e-4, rel=0.01) if value == 2e-4 else np.inf)
    assert not result.passes(1e-4)
    assert compared(found, one).passes(1e-4) is False, "whichever side is off"


def test_ties_of_tokens_judged_elsewhere_do_not_fail_but_decisions_do(one: Pass) -> None:
    """Prompt against single tokens reads some of the tokens that were compared with torch, too few for a share."""
    tied = replace(one, margins=np.zeros_like(one.margins))
    found = replace(one, selected_experts=~one.selected_experts)
    for capped in (True, False):
        ties, wrong = Comparison(capped=capped), Comparison(capped=capped)
        compare(ties, tied, tied)
        compare(wrong, one, found)
        assert ties.near_ties == T
        assert ties.passes(1e-4) is not capped
        assert not wrong.passes(1e-4)


def test_no_token_is_no_proof() -> None:
    assert not Comparison().passes(1.0)


@each("name", MODELS)
def test_margins_are_those_of_the_plain_model(name: str) -> None:
    model, ids, limits = model_of(name), tiny_ids(2, batch=1, time=24), busy_thresholds(MODELS[name])
    plain = np.array(list(judge(model, ids, limits).margins.values())).min((0, 1))[0]  # (T,)
    with torch.no_grad():
        found = margins(model(ids, limits), limits, model).numpy()
    config = model.config
    np.testing.assert_allclose(found, plain, rtol=0, atol=STATES_EPSILON if config.has_states else 1e-5)
    chooses = config.ffn.routing != "dense" or config.heads.routing != "all" or config.adapts_depth
    assert np.isinf(found).all() != (chooses or config.attention.window_kind == "learned"), "nothing to be close to"


def test_what_cannot_fall_otherwise_has_no_margin() -> None:
    """No token leaves at 1, every layer runs at 0, every expert is kept at 1, however sure the model is."""
    model, ids = model_of("both_none"), tiny_ids(2, batch=1, time=24)
    found = torch_pass(model, ids, everything_on(model.config))
    assert np.isinf(found.margins).all()
    assert found.selected_experts.all()


def test_router_top_p_one_keeps_experts_that_float32_rounds_away() -> None:
    """If the last expert has a probability of 1e-9, the mass before it is exactly 1 in float32."""
    model, ids = copy.deepcopy(model_of("top_p")), tiny_ids(2, batch=1, time=24)
    everything = everything_on(model.config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(20 if "router" in name else 1)
        routes = [layer.routes for layer in model(ids, everything).routing]
    assert any((r.mass_before >= 1).any() for r in routes), "this model shows nothing: its routers are not sharp"
    assert torch_pass(model, ids, everything).selected_experts.all()
    graph = Graph(build(model.config, weights_of(model)), model.config)
    assert Sequences(graph).run(ids.numpy(), everything).selected_experts.all()


def test_a_token_that_left_is_asked_nothing_more() -> None:
    model, ids = model_of("both_project"), tiny_ids(2, batch=1, time=24)
    busy = busy_thresholds(model.config)
    leave = busy._replace(exit_threshold=0 * busy.exit_threshold)
    with torch.no_grad():
        out = model(ids, leave)
        assert (out.exit_layer == 0).all()
        one_layer = margins(out, leave, model)
        elsewhere = ThresholdTensors(*(torch.cat([limit[:1], limit[1:] + 0.01]) for limit in leave.given().values()))
        assert torch.equal(one_layer, margins(out, elsewhere, model))


def test_a_few_outliers_pass_in_a_model_with_recurrent_mixers_and_many_do_not() -> None:
    random = np.random.default_rng(0)
    plain = Pass(
        random.normal(size=(T, V)).astype(np.float32),
        np.ones((L, T, E), bool),
        np.ones((L, T), bool),
        np.full(T, -1),
        np.zeros((L, T, 0), bool),
        np.zeros((L, T), np.int64),
        np.zeros((L, T, 0), bool),
        np.zeros((T, 0), np.float32),
        np.full(T, 0.1),
    )
    for number, size, passes in ((2, 5e-3, True), (3, 5e-3, False), (1, 2e-2, False), (T, 1e-4, True)):
        logits = plain.logits.copy()
        logits[:number, 1] += size
        result = Comparison(outliers=0)
        compare(result, plain, replace(plain, logits=logits))
        report = result.report(STATES_TOLERANCE)
        assert result.passes(STATES_TOLERANCE) is report["passed"] is passes
        assert report["outliers"] == (number if size > STATES_USUAL else 0)
    assert "outliers" not in compared(plain, plain).report(1e-4), "other models have none"
