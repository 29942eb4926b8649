"""The torch model against the plain one, and what a language model must never do: look to the right."""

import copy

import numpy as np
import pytest
import reference
import torch
from tiny_models import (
    ADAPTS_DEPTH,
    CONFIGS,
    ROUTED,
    B,
    T,
    V,
    busy_thresholds,
    decisions,
    judge,
    tiny_ids,
    tiny_model,
    variant,
)

from adaptive_lm.train.model import Thresholds, Transformer

IDS = [f"{name}-B{B}-T{T}-E{config.num_experts}" for name, config in CONFIGS.items()]


@pytest.mark.parametrize("name", CONFIGS, ids=IDS)
def test_torch_decides_as_the_plain_model_and_says_the_same(name: str) -> None:
    """Torch reads the text at once, the reference token by token with a cache: so this is also prefill = decoding."""
    model, ids = tiny_model(name), tiny_ids()
    limits = busy_thresholds(model.config)
    plain = judge(model, ids, limits)
    assert not plain.near_ties().any(), "choose another seed in tiny_models: these decisions may fall either way"

    with torch.no_grad():
        out = model(ids, limits)
    for decision, torch_says in decisions(out).items():
        np.testing.assert_array_equal(torch_says.numpy(), getattr(plain, decision), err_msg=decision)
    np.testing.assert_allclose(out.logits.numpy(), plain.logits, rtol=0, atol=reference.FP32_TOLERANCE)


@pytest.mark.parametrize("name", CONFIGS, ids=IDS)
def test_the_tiny_models_are_undecided_enough_to_judge_by(name: str) -> None:
    """A mechanism that says the same to every token would be compared with nothing."""
    model = tiny_model(name)
    plain = judge(model, tiny_ids(), busy_thresholds(model.config))
    if model.config.ffn.routing == "top_p":
        assert len(np.unique(plain.selected_experts.sum(-1)[plain.layers_run])) > 1
    if model.config.num_experts > 1:
        assert plain.selected_experts.any((0, 1, 2)).all(), "an expert that nobody uses"
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


@pytest.mark.parametrize("name", CONFIGS, ids=IDS)
def test_every_weight_matters_to_the_plain_model(name: str) -> None:
    model, ids = tiny_model(name), tiny_ids(batch=1, time=3).numpy()
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    all_run = reference.Thresholds(*np.repeat([[1.0], [0.0], [1.0]], model.config.num_layers, 1))
    logits = reference.forward(weights, model.config, ids, all_run).logits
    for key, _ in model.named_parameters():
        moved = weights[key] + np.random.default_rng(0).normal(size=weights[key].shape)
        others = reference.forward({**weights, key: moved}, model.config, ids, all_run).logits
        assert abs(others - logits).max() > 1e-3, key


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("name", ["both_none", "both_project"])
def test_the_ends_of_the_dial_run_everything_or_as_little_as_can_be(name: str, share: float) -> None:
    model, ids = tiny_model(name), tiny_ids()
    layers = model.config.num_layers
    most = torch.ones(layers), torch.zeros(layers), torch.ones(layers)
    least = torch.full((layers,), 1e-6), torch.full((layers,), 1.1), torch.zeros(layers)
    limits = Thresholds(*(most if share else least))
    plain = judge(model, ids, limits)
    with torch.no_grad():
        found = decisions(model(ids, limits))
    for decision, torch_says in found.items():
        np.testing.assert_array_equal(torch_says.numpy(), getattr(plain, decision), err_msg=decision)
    if share:
        assert found["selected_experts"].all()
        assert found["layers_run"].all()
    else:
        assert (found["layers_run"].sum(0) == 1).all()
        assert (found["selected_experts"].sum((0, -1)) == 1).all()
        assert (found["exit_layer"] == 0).all()


@pytest.mark.parametrize("name", CONFIGS, ids=IDS)
@pytest.mark.parametrize("given", [False, True], ids=["held", "given"])
def test_a_token_changes_nothing_to_its_left(name: str, given: bool) -> None:
    """At the thresholds the controllers hold, as in training, and at those of a caller, when tokens may leave."""
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
        old, new = (d if decision != "selected_experts" else d.transpose(-1, -2) for d in (old, new))  # time last
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


def test_without_thresholds_nobody_leaves() -> None:
    model, ids = tiny_model("both_none"), tiny_ids()
    with torch.no_grad():
        out = model(ids)
    assert (out.exit_layer == -1).all()
    assert set(out.exit_hidden) == {0, 1, 2}
    assert not out.exit_probs


@pytest.mark.parametrize("name", ROUTED)
def test_weights_of_the_chosen_experts_sum_to_one(name: str) -> None:
    model = tiny_model(name)
    with torch.no_grad():
        out = model(tiny_ids(), busy_thresholds(model.config))
    for layer in out.routing:
        sums = layer.routes.routing_weights.sum(-1)
        if model.config.ffn.renormalize:
            torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-6)
        else:
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
