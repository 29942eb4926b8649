"""`ffn.random_experts`: each token draws in training how many of its candidates may run."""

from typing import Any

import pytest
import torch
from support.models import variant

from adaptive_lm.train.model import ModelConfig, Transformer

FFN = {"num_experts": 8, "most_experts": 4, "experts_per_token": 4, "controller": "fixed", "router_top_p": 1.0}
IDS = torch.arange(200).view(2, 100) % 50


def make(**more: Any) -> ModelConfig:
    return variant(vocab_size=50, context_length=128, ffn={**FFN, **more})


def counts(model: Transformer) -> torch.Tensor:
    """Return the number of experts of each token in each layer, (L, N)."""
    routes = [layer.routes for layer in model(IDS).routing]
    return torch.stack([each.selected_experts.sum(-1) for each in routes if each is not None])


def test_each_token_draws_its_number_in_each_layer_evenly() -> None:
    torch.manual_seed(0)
    model = Transformer(make(random_experts=[2, 4])).train()
    drawn = counts(model)
    assert set(drawn.unique().tolist()) == {2, 3, 4}
    shares = torch.stack([(drawn == number).float().mean() for number in (2, 3, 4)])
    assert (shares - 1 / 3).abs().max() < 0.1
    assert not torch.equal(drawn[0], drawn[1])


def test_the_experts_that_run_are_those_of_highest_score() -> None:
    torch.manual_seed(0)
    model = Transformer(make(random_experts=[1, 3])).train()
    for layer in model(IDS).routing:
        assert layer.routes is not None
        chosen = layer.routes.selected_experts
        lowest = layer.routes.router_probs.masked_fill(~chosen, 2).min(-1).values
        highest_left = layer.routes.router_probs.masked_fill(chosen, -1).max(-1).values
        assert (lowest >= highest_left).all()
        assert torch.allclose(layer.routes.routing_weights.sum(-1), torch.ones(200))


def test_evaluation_runs_all_candidates_and_draws_nothing() -> None:
    torch.manual_seed(0)
    model = Transformer(make(random_experts=[1, 4])).eval()
    state = torch.get_rng_state()
    assert (counts(model) == 4).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_recomputed_activations_have_the_same_draws() -> None:
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = Transformer(make(random_experts=[1, 4])).train()
        model(IDS, checkpoint_activations=recompute).logits.square().mean().backward()
        gradients.append([weight.grad for weight in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"random_experts": [0, 2]}, "expected two numbers from 1 to most_experts"),
        ({"random_experts": [3, 2]}, "the smaller first"),
        ({"random_experts": [1, 5]}, "from 1 to most_experts \\(4\\)"),
        ({"random_experts": [1, 2], "most_experts": None}, "set most_experts"),
        ({"random_experts": [1, 2], "controller": "pi"}, "random_experts and controller pi exclude each other"),
        ({"random_experts": [1, 2], "per_token": True}, "random_experts and per_token exclude each other"),
    ],
)
def test_numbers_that_cannot_be_drawn_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)
