"""Learned thresholds, per layer and per token: their gradient, and the average they reach."""

import copy

import numpy as np
import pytest
import torch
from support.cover import rest_slow
from support.models import tiny_ids, tiny_model
from support.routers import KINDS, LEAST, MOST, WANTED, router_of, stream, used

from adaptive_lm.train.model import LossConfig, training_loss
from adaptive_lm.train.model.losses import threshold_loss
from adaptive_lm.train.model.routing.thresholded_router import keep_gradient, shifted


@pytest.mark.parametrize(
    ("kind", "per_token", "controller"),
    rest_slow(
        (
            (kind, per_token, controller)
            for kind in KINDS
            for per_token in (False, True)
            for controller in ("fixed", "learned")
            if controller == "learned" or per_token or kind == "adaptive"
        ),
        [
            ("experts", True, "learned"),
            ("depth", False, "learned"),
            ("heads", True, "fixed"),
            ("adaptive", False, "fixed"),
        ],
    ),
)
def test_what_is_learned_of_a_threshold_moves_towards_its_budget(kind: str, per_token: bool, controller: str) -> None:
    """Under its loss alone, from too much and from too little; a fixed level learns through its predictor."""
    span, distances = MOST[kind] - LEAST[kind], []
    for start in (0.1, 0.9):
        name = {"experts": "router_top_p", "depth": "depth_threshold"}.get(kind, "head_top_p")
        level = start if controller == "learned" else 0.7
        router = router_of(kind, controller=controller, per_token=per_token, per_token_reach=4.0, **{name: level})
        if router.per_token is not None and controller == "fixed":
            router.per_token.bias.data.fill_(5 * (start - 0.5))
        assert router.is_budgeted
        thresholds = [weight for key, weight in router.named_parameters() if "level" in key or "per_token" in key]
        descent, averages = torch.optim.Adam(thresholds, lr=0.05), []
        for _, x in zip(range(200), stream(), strict=False):
            routes = router(x, router.level())
            averages.append(used(routes).mean().item())
            assert routes.soft_count.mean().item() == pytest.approx(averages[-1], abs=1e-4)
            descent.zero_grad()
            (routes.soft_count.mean() - router.target_units).square().backward()
            descent.step()
        distances.append(abs(averages[0] - WANTED[kind]))
        assert abs(np.mean(averages[180:]) - WANTED[kind]) < 0.2 * distances[-1] + 0.02 * span
    assert max(distances) > 0.09 * span, "it starts far away"


def test_the_loss_of_a_learned_threshold_is_the_squared_distance_to_the_average_asked_for() -> None:
    model = copy.deepcopy(tiny_model("controllers")).train()
    out, counted = model(tiny_ids()), torch.arange(2 * 17) % 3 > 0
    found = threshold_loss(model, out, counted)
    expected = []
    for layer in out.routing:
        shown = counted & layer.runs
        kept = layer.routes.selected_experts[shown].sum(-1).float().mean()
        expected.append((kept.item() - model.config.ffn.experts_per_token) ** 2)
    assert found is not None
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-4)
    assert threshold_loss(tiny_model("top_p"), out, counted) is None, "a controller holds it"


@pytest.mark.parametrize("name", ["experts_per_token", "depth_per_token", "heads_top_p", "heads_adaptive"])
def test_a_predictor_gives_each_token_a_threshold_of_its_own(name: str) -> None:
    model = tiny_model(name)
    config = model.config
    with torch.no_grad():
        layer = model(tiny_ids()).routing[1]
    if name == "heads_adaptive":
        limit = layer.heads.mass_before[:, 1]  # where a token's second rank stands
    else:
        routes, section = {
            "experts_per_token": (layer.routes, config.ffn),
            "depth_per_token": (layer.depth, config.depth),
            "heads_top_p": (layer.heads, config.heads),
        }[name]
        limit = shifted(torch.tensor(0.5), routes.shift).flatten()
        reach = torch.tensor(section.per_token_reach).sigmoid()
        assert ((1 - reach <= limit) & (limit <= reach)).all()
    assert limit.max() - limit.min() > 0.2


def test_a_hard_decision_has_the_gradient_of_a_soft_one() -> None:
    """Straight-through: 1 or 0 forward, and backward the slope of a sigmoid around the border."""
    score, limit = torch.linspace(0, 1, 11), torch.tensor(0.5, requires_grad=True)
    kept = keep_gradient(score < limit, score, limit)
    assert kept.tolist() == pytest.approx([1.0] * 5 + [0.0] * 6, abs=1e-6)
    slopes = [torch.autograd.grad(k, limit, retain_graph=True)[0].item() for k in kept]
    assert slopes[5] == pytest.approx(2.5)
    assert all(slope > 0 for slope in slopes)
    assert slopes[:6] == sorted(slopes[:6])


def test_a_learned_threshold_is_part_of_the_training_loss() -> None:
    model = copy.deepcopy(tiny_model("controllers")).train()
    out = model(tiny_ids())
    _, parts = training_loss(model, out, tiny_ids(1), torch.ones(2, 17, dtype=torch.bool), LossConfig())
    assert parts["threshold_loss"] > 0
