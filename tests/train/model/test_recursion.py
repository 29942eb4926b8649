"""Layers that are run several times with the same weights."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from support.models import CONFIGS, ROUTERS, busy_thresholds, even_thresholds, season, tiny_ids, tiny_model, variant

from adaptive_lm.train.model import Transformer

RECURSIONS = [name for name, config in CONFIGS.items() if config.recursion.times > 1]


@pytest.mark.parametrize("name", RECURSIONS)
def test_a_repetition_has_no_weights_but_those_of_its_depth_router(name: str) -> None:
    model, recursion = tiny_model(name), CONFIGS[name].recursion
    layers = [weight for weight in model.state_dict() if weight.startswith("layers.")]
    own = {weight for weight in layers if int(weight.split(".")[1]) in recursion.repeated}
    assert own
    assert all(".depth_router." in weight for weight in own)
    assert {int(weight.split(".")[1]) for weight in own} == set(filter(recursion.begins, recursion.repeated))


def unshared(model: Transformer, sources: dict[int, int]) -> dict[str, torch.Tensor]:
    """Return the weights of a model whose repetitions have copies of those of the layers that they repeat."""
    weights = model.state_dict()
    for layer, source in sources.items():
        begin = f"layers.{source}."
        own = {name: value for name, value in weights.items() if name.startswith(begin)}
        weights |= {name.replace(begin, f"layers.{layer}."): value for name, value in own.items()}
    return weights


def test_repeated_layers_compute_what_layers_with_equal_weights_do() -> None:
    shape = {"num_layers": 6, "ffn": {"shared_expert_dim": 20}}
    once = Transformer(variant(**shape, recursion={"first": 1, "layers": 2, "times": 2})).eval()
    apart = Transformer(variant(**shape)).eval()
    apart.load_state_dict(unshared(once, {3: 1, 4: 2}))
    with torch.no_grad():
        torch.testing.assert_close(once(tiny_ids()).logits, apart(tiny_ids()).logits, rtol=0, atol=0)


@pytest.mark.parametrize("name", RECURSIONS)
def test_a_token_that_left_the_recursion_does_not_come_back(name: str) -> None:
    config = CONFIGS[name]
    with torch.no_grad():
        out = tiny_model(name)(tiny_ids(), busy_thresholds(config))
    ran = np.stack([layer.runs.numpy() for layer in out.routing])  # (L, N)
    recursion = config.recursion
    begins = [layer for layer in recursion.repeated if recursion.begins(layer)]
    for before, after in pairwise(begins):
        assert not (ran[after] & ~ran[before]).any()
    counts = ran[begins].sum(0)
    assert len(set(counts.tolist())) > 1, "every token runs as often: the test sees no choice"
    for layer in recursion.repeated:  # the layers of a repetition run together, but for tokens that left the model
        first = layer - (recursion.source_of(layer) - recursion.first)
        left = out.exit_layer.flatten().numpy()
        gone = (left >= 0) & (left < layer)
        np.testing.assert_array_equal(ran[layer], ran[first] & ~gone)


def test_the_gradient_of_a_shared_weight_is_the_sum_over_its_repetitions() -> None:
    shape = {"num_layers": 5, "ffn": {"shared_expert_dim": 20}}
    once = Transformer(variant(**shape, recursion={"first": 1, "layers": 1, "times": 3}))
    season(once, seed=3)
    apart = Transformer(variant(**shape))
    apart.load_state_dict(unshared(once, {2: 1, 3: 1}))
    for model in (once, apart):
        model(tiny_ids()).logits.square().mean().backward()
    gradients = {name: weight.grad for name, weight in apart.named_parameters()}
    for name, weight in once.blocks()[1].named_parameters():
        parts = [gradients[f"layers.{layer}.{name}"] for layer in (1, 2, 3)]
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, torch.stack(parts).sum(0), rtol=1e-4, atol=1e-6, msg=name)


def test_the_share_of_a_repetition_counts_only_tokens_that_could_run_it() -> None:
    config = variant(num_layers=5, depth=ROUTERS, recursion={"first": 1, "layers": 1, "times": 3})
    model = Transformer(config).train()
    out = model(tiny_ids())
    seen = []
    for block in model.blocks():
        router = block.depth_router
        if router is not None:
            router.observe_routes = lambda routes, shown: seen.append(int(shown.sum()))  # type: ignore[method-assign]
    model.observe(out)
    assert seen == [out.routing[1].runs.numel(), int(out.routing[2].runs.sum())]


THRICE = {"num_layers": 6, "recursion": {"first": 1, "times": 3}}
WRONG = {
    "set num_layers to at least 6": {"recursion": {"first": 1, "layers": 2, "times": 2}},
    "greater than or equal to 1": {"recursion": {"first": 1, "times": 0}},
    "layer 3 repeats layer 1, but their attention.window differ": {
        **THRICE,
        "attention": {"window": (0, 4, 4, 8, 0, 0)},
    },
    "layer 2 repeats layer 1, but their ffn.dense_layers differ": {**THRICE, "ffn": {"dense_layers": (1,)}},
}


@pytest.mark.parametrize("says", WRONG)
def test_a_recursion_that_does_not_fit_is_refused(says: str) -> None:
    with pytest.raises(ValueError, match=says):
        variant(**WRONG[says])


def test_the_shortest_model_that_the_message_names_is_accepted() -> None:
    assert variant(num_layers=6, recursion={"first": 1, "layers": 2, "times": 2}).recursion.shared == (
        "layers.1.",
        "layers.2.",
    )


def test_everything_runs_at_even_thresholds() -> None:
    with torch.no_grad():
        out = tiny_model("recursion")(tiny_ids(), even_thresholds(6))
    assert all(layer.runs.all() for layer in out.routing)
