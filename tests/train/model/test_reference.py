"""Tests of the plain model: mechanisms without effect, results by hand, and the code of the papers."""

from typing import Any

import numpy as np
import pytest
import torch
from reference import model as reference
from reference.attention import Attention
from reference.routing import choose_best, choose_by_complexity, choose_by_mass, confidence
from support.models import CONFIGS, T, as_arrays, busy_thresholds, judge, tiny_ids, tiny_model, variant

from adaptive_lm.train.model import ModelConfig, ThresholdTensors


def run_plain(config: ModelConfig, weights: dict[str, np.ndarray], limits: ThresholdTensors) -> reference.Result:
    arrays = as_arrays(limits)
    return reference.forward(weights, config, tiny_ids(batch=1).numpy(), arrays)


def weights_of(name: str) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in tiny_model(name).state_dict().items()}


def with_attention(config: ModelConfig, **fields: Any) -> ModelConfig:
    return config.model_copy(update={"attention": config.attention.model_copy(update=fields)})


@pytest.mark.parametrize("window", [T, T - 1, 1])
def test_a_window_as_long_as_the_text_is_none_and_one_of_1_sees_its_own_token(window: int) -> None:
    """A token at position i sees position j if and only if i - j < window."""
    weights, limits = weights_of("top_p"), busy_thresholds(CONFIGS["top_p"])
    plain = run_plain(CONFIGS["top_p"], weights, limits)
    found = run_plain(variant(attention={"window": window}), weights, limits)
    assert (found.windows == window).all()
    differs = ~np.isclose(found.logits, plain.logits).all(-1)[0]
    assert differs.tolist() == [place >= window for place in range(T)]


def test_a_window_under_none_counts_the_tokens_of_its_layer_and_not_those_of_the_text() -> None:
    """With a window of 4, a token still sees the three before it that ran the layer, however far back they stand."""
    config, limits = CONFIGS["window_none"], busy_thresholds(CONFIGS["window_none"])
    weights = weights_of("window_none")
    base = run_plain(config, weights, limits)
    layer = min((1, 2), key=lambda layer: base.layers_run[layer, 0].sum())
    ran = np.flatnonzero(base.layers_run[layer, 0])
    assert 4 < len(ran) < T - 3
    assert np.diff(ran).max() > 1
    attention = Attention({k: np.asarray(v, np.float64) for k, v in weights.items()}, config, layer, 1.0, np.float64)
    generator = np.random.default_rng(0)
    for position in ran:
        attention.write(generator.normal(size=config.dim), int(position), counted=True)
    seen = attention.visible(np.zeros(config.dim), base, (layer, 0, int(ran[-1])))
    assert seen == list(range(len(ran) - 4, len(ran)))


def test_contextual_positions_are_those_of_the_papers_code() -> None:
    """Listing 1 of Golovneva et al. 2024, for one query: cumulated from the right over the whole row."""
    config, weights = CONFIGS["cope"], {k: np.asarray(v, np.float64) for k, v in weights_of("cope").items()}
    attention = Attention(weights, config, 1, 1.0, np.float64)
    generator = np.random.default_rng(0)
    query, scores = generator.normal(size=config.resolved_head_dim), generator.normal(size=T)
    attention.counted = [True] * T
    found = attention.cope(query, scores, list(range(T)))

    gates = torch.from_numpy(scores).sigmoid()
    pos = gates.flip(-1).cumsum(-1).flip(-1).clamp(max=config.attention.max_positions - 1)
    pos_ceil, pos_floor = pos.ceil().long(), pos.floor().long()
    logits_int = torch.from_numpy(weights["layers.1.attention.position_embedding"] @ query)
    part = pos - pos_floor
    expected = logits_int.gather(-1, pos_ceil) * part + logits_int.gather(-1, pos_floor) * (1 - part)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-12)
    assert (pos == config.attention.max_positions - 1).any()
    assert (pos < config.attention.max_positions - 1).sum() > 3


def test_a_token_that_was_not_counted_stands_where_its_neighbour_to_the_right_does() -> None:
    config, weights = CONFIGS["cope"], {k: np.asarray(v, np.float64) for k, v in weights_of("cope").items()}
    attention = Attention(weights, config, 1, 1.0, np.float64)
    query, scores = np.random.default_rng(0).normal(size=config.resolved_head_dim), np.array([3.0, 0.5, -1.0])
    attention.counted = [True, False, True]
    skipping = attention.cope(query, scores, [0, 1, 2])
    assert skipping[1] == skipping[2]
    attention.counted = [True, True]
    assert attention.cope(query, scores[[0, 2]], [0, 1]) == pytest.approx(skipping[[0, 2]])


def test_equal_position_embeddings_of_zero_are_no_positions_at_all() -> None:
    weights, limits = weights_of("cope"), busy_thresholds(CONFIGS["cope"])
    silent = {k: 0 * v if k.endswith("position_embedding") else v for k, v in weights.items()}
    none = run_plain(with_attention(CONFIGS["cope"], positions="none"), weights, limits)
    np.testing.assert_allclose(run_plain(CONFIGS["cope"], silent, limits).logits, none.logits, atol=1e-9)
    assert abs(run_plain(CONFIGS["cope"], weights, limits).logits - none.logits).max() > 0.1


@pytest.mark.parametrize(
    ("limit", "chosen"),
    [
        (0.0, [2]),
        (0.5, [2]),
        (0.5001, [2, 0]),
        (0.75, [2, 0]),
        (0.76, [2, 0, 1]),
        (1.0, [2, 0, 1, 3]),
    ],
)
def test_things_are_chosen_until_those_before_hold_the_mass(limit: float, chosen: list[int]) -> None:
    """Equal probabilities are taken in order of number; a limit of 1 takes all."""
    assert choose_by_mass(np.array([0.25, 0.125, 0.5, 0.125]), limit).chosen == chosen


@pytest.mark.parametrize(
    ("level", "complexity", "count"),
    [(0.5, -1.7, 1), (0.5, -1.5, 2), (0.5, 0.1, 3), (0.16, 0.0, 1), (0.17, 0.0, 2), (0.5, 1.7, 4), (1.0, -9.0, 4)],
)
def test_a_complex_token_takes_more_heads(level: float, complexity: float, count: int) -> None:
    """At least 1 and at most 4 of 5 heads run: ranks 1, 2 and 3 are at 1/6, 1/2 and 5/6, whose logit is 1.61."""
    P = np.array([0.1, 0.3, 0.2, 0.25, 0.15])
    assert choose_by_complexity(P, level, complexity, 1, 4).chosen == [1, 3, 2, 4, 0][:count]


def test_margins_are_the_distances_to_the_border() -> None:
    P = np.array([0.25, 0.125, 0.5, 0.125])
    assert choose_best(P, 2)[1:] == (np.inf, 0.125)
    assert choose_by_mass(P, 0.6)[1:] == pytest.approx((0.1, 0.125))
    assert choose_by_mass(P, 1.0)[1:] == (np.inf, np.inf)
    assert choose_by_complexity(P, 0.3, 0.0, 1, 3)[1:] == pytest.approx((0.05, 0.125))  # ranks at 1/4 and 3/4


def test_confidence_is_0_where_all_is_even_and_1_where_one_is_sure() -> None:
    sure, even = np.array([0.0, 1e4, 0.0, 0.0]), np.zeros(4)
    with np.errstate(under="ignore"):
        for criterion, least in (("top_prob", 0.25), ("margin", 0.0), ("entropy", 0.0)):
            assert confidence(criterion, sure) == pytest.approx(1)
            assert confidence(criterion, even) == pytest.approx(least)
    half = np.log([0.5, 0.3, 0.1, 0.1])
    assert confidence("margin", half) == pytest.approx(0.2)
    assert confidence("entropy", half) == pytest.approx(1 - 1.16828 / 1.38629, abs=1e-5)


@pytest.mark.parametrize("name", ["heads_shared", "heads_top_p", "heads_adaptive", "heads_top_k"])
def test_the_weights_of_the_heads_add_up_to_the_average_number(name: str) -> None:
    """The weights of the routed heads add up to m; shared and routed heads are balanced by a pair that adds up to 2."""
    config = CONFIGS[name]
    weights = {k: np.asarray(v, np.float64) for k, v in weights_of(name).items()}
    attention = Attention(weights, config, 0, 0.6, np.float64)
    result = judge(tiny_model(name), tiny_ids(batch=1, time=1), busy_thresholds(config))
    normed = np.random.default_rng(3).normal(size=config.dim)
    heads, S = attention.heads(normed, result, (0, 0, 0)), config.heads.shared_heads
    shared = sum(weight for head, weight in heads.items() if head < S)
    routed = sum(weight for head, weight in heads.items() if head >= S)
    if S:
        assert shared / S + routed / (config.heads_per_token - S) == pytest.approx(2)
        assert all(head in heads for head in range(S))
    else:
        assert routed == pytest.approx(config.heads_per_token)
