"""The torch model compared with the plain one; and no token depends on a later one."""

import copy
import itertools
import re

import numpy as np
import pytest
import torch
from reference import model as reference
from support.cover import rest_slow
from support.models import (
    ADAPTS_DEPTH,
    CONFIGS,
    COVER,
    ROUTED,
    ROUTES_HEADS,
    B,
    T,
    V,
    as_arrays,
    busy_thresholds,
    decisions,
    even_thresholds,
    judge,
    plain_result,
    tiny_ids,
    tiny_model,
    variant,
)

from adaptive_lm.train.model import Transformer

IDS = [f"{name}-B{B}-T{T}-E{config.num_experts}" for name, config in CONFIGS.items()]


@pytest.mark.parametrize("name", CONFIGS, ids=IDS)
def test_torch_decides_as_the_plain_model_and_says_the_same(name: str) -> None:
    """Torch reads the text in one pass, the reference token by token with a cache, so prefill equals decoding too."""
    model, ids = tiny_model(name), tiny_ids()
    limits = busy_thresholds(model.config)
    plain = plain_result(name)
    assert not plain.near_ties().any(), "choose another seed in support.models: these decisions may fall either way"

    with torch.no_grad():
        out = model(ids, limits)
    for decision, torch_says in decisions(out).items():
        np.testing.assert_array_equal(torch_says.numpy(), getattr(plain, decision), err_msg=decision)
    np.testing.assert_allclose(out.logits.numpy(), plain.logits, rtol=0, atol=reference.FP32_TOLERANCE)


@pytest.mark.parametrize("name", CONFIGS, ids=IDS)
def test_the_tiny_models_are_undecided_enough_to_judge_by(name: str) -> None:
    """A mechanism that decides the same for every token would test nothing."""
    model = tiny_model(name)
    plain = plain_result(name)
    ran, layers = plain.layers_run, range(model.config.num_layers)
    attends = np.array([model.config.attends(layer) for layer in layers])
    heads = plain.selected_heads[attends][ran[attends]]  # (tokens that ran a layer with attention, H)
    if model.config.ffn.routing == "top_p" and model.config.ffn.candidates > 1:
        assert len(np.unique(plain.selected_experts.sum(-1)[ran])) > 1
    if 1 < model.config.num_experts <= 2 * T:
        assert plain.selected_experts.any((0, 1, 2)).all(), "an expert that no token uses"
    if model.config.heads.routing in ("top_p", "adaptive"):
        assert len(np.unique(heads.sum(-1))) > 1
        assert heads.sum(-1).min() >= model.config.least_heads
        assert heads.sum(-1).max() <= model.config.most_heads
    if model.config.heads.routing != "all":
        assert heads.any(0).all(), "a head that no token uses"
        assert len(np.unique(heads, axis=0)) > 2
    if model.config.has_windows:
        assert 0 < plain.windows[ran & (plain.windows > 0)].min() < T - 2, "windows that hide nothing"
    if model.config.attention.window_kind in ("length", "learned"):
        assert any(len(np.unique(sizes[sizes > 0])) > 2 for sizes in plain.windows)
    if model.config.has_depth_router(1):
        runs = plain.layers_run[1:-1] & ~np.isinf(plain.margins["depth"][1:-1])
        assert 0 < runs.sum() < np.isfinite(plain.margins["depth"]).sum()
    if model.config.depth.exit_layers:
        assert len(np.unique(plain.exit_layer)) > 1
    if model.config.depth.skipped_kv == "none":
        assert plain.cache_lengths.min() < T


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_plain_model_decides_the_same_in_float32(dtype: type) -> None:
    model, ids = tiny_model("both_none"), tiny_ids()
    limits = busy_thresholds(model.config)
    exact, other = judge(model, ids, limits), judge(model, ids, limits, dtype)
    np.testing.assert_array_equal(exact.selected_experts, other.selected_experts)
    np.testing.assert_allclose(exact.logits, other.logits, rtol=0, atol=reference.FP32_TOLERANCE)
    assert other.logits.dtype == dtype


@pytest.mark.parametrize(
    ("name", "every_layer"),
    rest_slow([*((name, False) for name in COVER), *((name, True) for name in CONFIGS)], [(n, False) for n in COVER]),
)
def test_every_weight_matters_to_the_plain_model(name: str, every_layer: bool) -> None:
    """Each weight matters where everything runs or where little does: some weights only move a threshold."""
    config = CONFIGS[name]
    weights = {key: value.numpy() for key, value in tiny_model(name).state_dict().items()}
    everything = as_arrays(even_thresholds(config.num_layers))
    busy = as_arrays(busy_thresholds(config))
    texts = [tiny_ids(seed, batch=1).numpy() for seed in (5, 6, 7)]  # a threshold may decide nothing in one of them

    def logits(of: dict[str, np.ndarray], text: int, time: int, limits: dict[str, np.ndarray]) -> np.ndarray:
        return np.asarray(reference.forward(of, config, texts[text][:, :time], limits).logits)

    before = {(0, 3): logits(weights, 0, 3, everything)} | {(n, T): logits(weights, n, T, busy) for n in range(3)}
    generator, seen = np.random.default_rng(0), set()
    for key, _ in tiny_model(name).named_parameters():
        if key.endswith("level_logit"):  # a starting threshold; the thresholds are given here
            continue
        kind = re.sub(r"\d+", "N", key)
        if kind in seen and not every_layer:
            continue
        seen.add(kind)
        by = 3 * generator.normal(size=weights[key].shape) if weights[key].ndim else 6.0
        tries = [(0, 3, everything, by), *((n, T, busy, sign * by) for n in range(3) for sign in (1, -1))]
        assert any(
            abs(logits({**weights, key: weights[key] + moved}, text, time, limits) - before[text, time]).max() > 1e-3
            for text, time, limits, moved in tries
        ), key


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("name", rest_slow(["both_none", "both_project", *ROUTES_HEADS], ["both_none", *COVER]))
def test_the_ends_of_the_dial_run_everything_or_as_little_as_can_be(name: str, share: float) -> None:
    """A token's own shift moves neither end: at a level of 1 every expert and head runs, at next to 0 the fewest."""
    model, ids = tiny_model(name), tiny_ids()
    config, layers = model.config, model.config.num_layers
    limits = even_thresholds(layers) if share else even_thresholds(layers, 1e-6, 2.1, 0.0, 1e-6)
    plain = judge(model, ids, limits)
    with torch.no_grad():
        found = decisions(model(ids, limits))
    for decision, torch_says in found.items():
        np.testing.assert_array_equal(torch_says.numpy(), getattr(plain, decision), err_msg=decision)
    attends = np.array([config.attends(layer) for layer in range(layers)])
    heads = plain.selected_heads[attends][plain.layers_run[attends]].sum(-1)
    assert (heads == (config.most_heads if share else config.least_heads)).all()
    if share:
        assert found["layers_run"].all()
        most = torch.tensor([1 if config.is_dense(layer) else config.ffn.candidates for layer in range(layers)])
        assert (found["selected_experts"].sum(-1) == most[:, None, None]).all() or config.ffn.routing == "top_k"
        return
    if config.has_depth_router(1):
        always_runs = 1 if config.depth.exit_layers else 2
        assert (found["layers_run"].sum(0) == always_runs).all()
    if config.depth.exit_layers:
        assert (found["exit_layer"] == 0).all()
    assert (found["selected_experts"][:, found["layers_run"].any(0)].sum(-1) <= 1).all()


@pytest.mark.parametrize(
    ("name", "given"),
    rest_slow(itertools.product(CONFIGS, [False, True]), set(itertools.product(COVER, [False, True]))),
)
def test_a_token_changes_nothing_to_its_left(name: str, given: bool) -> None:
    """At the controllers' thresholds, as in training, and at given thresholds, where tokens may leave."""
    model = copy.deepcopy(tiny_model(name)).train()
    limits = busy_thresholds(model.config) if given else None
    with torch.no_grad():
        for seed in range(3):
            model.observe(model(tiny_ids(seed)))
        ids = tiny_ids()
        before, place = model(ids, limits), T // 2
        changed = ids.clone()
        changed[:, place:] = (ids[:, place:] + torch.arange(1, T - place + 1)) % V
        after = model(changed, limits)
    for decision, old in decisions(before).items():
        new = decisions(after)[decision]
        if decision.startswith(("selected", "zero")):
            old, new = old.transpose(-1, -2), new.transpose(-1, -2)  # time last
        assert torch.equal(old[..., :place], new[..., :place]), decision
    torch.testing.assert_close(after.logits[:, :place], before.logits[:, :place], rtol=0, atol=reference.FP32_TOLERANCE)
    assert not torch.allclose(after.logits[:, place:], before.logits[:, place:], atol=0.1)


@pytest.mark.parametrize("name", ADAPTS_DEPTH)
def test_the_sequences_of_a_batch_do_not_touch_each_other(name: str) -> None:
    model, ids = tiny_model(name), tiny_ids()
    limits = busy_thresholds(model.config)
    with torch.no_grad():
        together, alone = model(ids, limits), model(ids[1:], limits)
    assert torch.equal(together.exit_layer[1:], alone.exit_layer)
    torch.testing.assert_close(together.logits[1:], alone.logits, rtol=0, atol=reference.FP32_TOLERANCE)


@pytest.mark.parametrize("policy", ["routers", "exits", "both"])
def test_the_two_policies_for_skipped_keys_differ(policy: str) -> None:
    none = tiny_model(f"{policy}_none")
    other = none.config.depth.model_copy(update={"skipped_kv": "project"})
    project = Transformer(none.config.model_copy(update={"depth": other})).eval()
    project.load_state_dict(none.state_dict())
    limits = busy_thresholds(none.config)
    with torch.no_grad():
        difference = (none(tiny_ids(), limits).logits - project(tiny_ids(), limits).logits).abs()
    assert difference[:, 0].max() < reference.FP32_TOLERANCE, "the first token has nothing to look back at"
    assert difference.max() > 0.1


def test_without_thresholds_no_token_leaves() -> None:
    model, ids = tiny_model("both_none"), tiny_ids()
    with torch.no_grad():
        out = model(ids)
    assert (out.exit_layer == -1).all()
    assert set(out.exit_hidden) == {0, 1, 2}
    assert not out.exit_confidence


@pytest.mark.parametrize("name", ROUTED)
def test_weights_of_the_chosen_experts_sum_to_one(name: str) -> None:
    model = tiny_model(name)
    with torch.no_grad():
        out = model(tiny_ids(), busy_thresholds(model.config))
    for layer in (layer for layer in out.routing if layer.routes is not None):
        sums = layer.routes.routing_weights.sum(-1)
        if layer.routes.zero is not None:
            sums = sums + layer.routes.zero.weights.sum(-1)
        if model.config.ffn.renormalize:
            torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-6)
        elif model.config.ffn.score == "softmax" and model.config.ffn.routing != "relu":
            assert (sums < 1 - 1e-3).any()


def test_usage_counts_what_was_decided() -> None:
    model, ids = tiny_model("both_none"), tiny_ids()
    with torch.no_grad():
        out = model(ids, busy_thresholds(model.config))
    counted = torch.zeros(B, T, dtype=torch.bool)
    counted[0, 3:] = True
    found = decisions(out)
    experts, layers = found["selected_experts"][:, counted].sum(), found["layers_run"][:, counted].sum()
    usage = out.usage(counted)
    torch.testing.assert_close(usage["experts_per_token"], experts / layers)
    torch.testing.assert_close(usage["layers_per_token"], layers / counted.sum())
    assert 1 < usage["experts_per_token"] < 4
    assert 1 < usage["layers_per_token"] < 4


def test_a_text_longer_than_the_context_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"33 tokens .* context of 32"):
        tiny_model("top_p")(tiny_ids(time=33))


def test_a_model_needs_its_vocabulary() -> None:
    with pytest.raises(ValueError, match="vocab_size is 0"):
        Transformer(variant(vocab_size=0))
