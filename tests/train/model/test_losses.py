"""The losses, alone and summed. N tokens, E experts."""

import copy

import pytest
import torch
from support.cover import rest_slow
from support.models import CONFIGS, COVER, B, T, V, tiny_ids, tiny_model
from torch import Tensor

from adaptive_lm.train.model import FFNConfig, LossConfig, cross_entropy, training_loss
from adaptive_lm.train.model.attention.attention import Windows
from adaptive_lm.train.model.attention.heads import HeadRoutes
from adaptive_lm.train.model.block import LayerRouting
from adaptive_lm.train.model.losses import (
    depth_z_loss,
    head_balancing_loss,
    load_balancing_loss,
    router_entropy_loss,
    router_z_loss,
    window_loss,
)
from adaptive_lm.train.model.routing.depth import DepthRoutes
from adaptive_lm.train.model.routing.router import Router

N, E, D = 60, 4, 16
ALL = torch.ones(N, dtype=torch.bool)
ZEROS = torch.zeros(N)
BALANCING = [load_balancing_loss, head_balancing_loss]


def layer_of(logits: Tensor, selected: Tensor, runs: Tensor | None = None, gate: Tensor = ZEROS) -> LayerRouting:
    """Make the routing of a layer from the logits (N, E) of experts and heads, and the selections of both.

    `gate` (N,) are the logits of its depth router and the scores of its windows.
    """
    router = Router(D, FFNConfig(num_experts=E))
    router.weight.data = torch.eye(E, D)
    routes = router(torch.nn.functional.pad(logits, (0, D - E)), torch.tensor(1.0))
    shared = torch.ones(N, 2, dtype=torch.bool)  # shared heads, which are not balanced
    heads = HeadRoutes(
        logits, logits.softmax(-1), routes.mass_before, torch.cat([shared, selected], -1), logits, None, None
    )
    return LayerRouting(
        ALL if runs is None else runs,
        routes._replace(selected_experts=selected),
        DepthRoutes(gate, gate.sigmoid(), ALL, gate, None, None),
        heads,
        Windows(ZEROS.long(), gate.sigmoid(), None),
    )


def evenly(k: int) -> Tensor:
    """(N, E) bool: every token k experts, every expert the same number of tokens."""
    return ((torch.arange(E) - torch.arange(N)[:, None]) % E) < k


def preferring(first: float) -> tuple[Tensor, Tensor]:
    """Logits (N, E) that lean to expert 0 by `first` nats, noise aside, and the best expert of each token."""
    logits = torch.randn(N, E, generator=torch.Generator().manual_seed(0)) + first * torch.eye(E)[0]
    return logits, torch.nn.functional.one_hot(logits.argmax(-1), E).bool()


@pytest.mark.parametrize("loss", BALANCING)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_load_balancing_is_one_where_all_is_even(k: int, loss) -> None:  # type: ignore[no-untyped-def]
    """T34, for every number of experts or heads per token."""
    assert loss(layer_of(torch.zeros(N, E), evenly(k)), ALL).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("loss", BALANCING)
def test_load_balancing_rises_with_every_step_from_even_to_one_expert(loss) -> None:  # type: ignore[no-untyped-def]
    """T34. E is its maximum: all tokens choose one expert, or one head, with certainty."""
    losses = [loss(layer_of(*preferring(first)), ALL).item() for first in (0.0, 0.5, 1, 2, 4, 50)]
    assert losses == sorted(losses)
    assert losses[0] > 1 - 1e-6
    assert losses[-1] == pytest.approx(E, rel=1e-4)


@pytest.mark.parametrize("loss", BALANCING)
def test_load_balancing_pushes_probability_away_from_the_busy_expert(loss) -> None:  # type: ignore[no-untyped-def]
    logits, selected = preferring(1.0)
    logits.requires_grad_()
    loss(layer_of(logits, selected), ALL).backward()
    assert logits.grad is not None
    assert logits.grad.sum(0)[0] > 0
    assert (logits.grad.sum(0)[1:] < 0).all()


@pytest.mark.parametrize("loss", [*BALANCING, router_z_loss, router_entropy_loss, depth_z_loss, window_loss])
def test_tokens_that_do_not_count_change_no_loss(loss) -> None:  # type: ignore[no-untyped-def]
    """T34: padding, and for what a layer decides within it also the tokens that skipped it."""
    logits, selected = preferring(1.0)
    counted = torch.arange(N) % 3 != 0
    gate = logits[:, 0].clone()

    def value(logits: Tensor, selected: Tensor, gate: Tensor, counted: Tensor, runs: Tensor = ALL) -> float:
        return loss(layer_of(logits, selected & runs[:, None], runs, gate), counted).item()

    alone = value(logits, selected, gate, counted)
    assert alone != pytest.approx(value(logits, selected, gate, ALL), rel=1e-3)
    noise = torch.where(counted[:, None], logits, 9 * torch.randn(N, E, generator=torch.Generator().manual_seed(1)))
    others = torch.where(counted[:, None], selected, ~selected)
    elsewhere = torch.where(counted, gate, 7.0)
    assert value(noise, others, elsewhere, counted) == alone
    if loss is not depth_z_loss:
        assert value(noise, others, elsewhere, ALL, runs=counted) == pytest.approx(alone, rel=1e-6)


def test_the_z_loss_is_the_squared_logsumexp_and_pulls_logits_down() -> None:
    """T34: its sign."""
    logits, selected = preferring(3.0)
    logits.requires_grad_()
    loss = router_z_loss(layer_of(logits, selected), ALL)
    assert loss.item() == pytest.approx(logits.exp().sum(-1).log().square().mean().item(), rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.sum() > 0


def test_the_depth_z_loss_is_the_squared_logit() -> None:
    layer = layer_of(torch.zeros(N, E), evenly(1), gate=torch.linspace(-3, 2, N))
    assert depth_z_loss(layer, ALL).item() == pytest.approx(torch.linspace(-3, 2, N).square().mean().item(), rel=1e-5)


def test_the_window_loss_makes_looking_back_cost() -> None:
    """The loss is a share between the least and the largest window, so its weight is the same for a long window."""
    gate = torch.linspace(-3, 2, N).requires_grad_()
    loss = window_loss(layer_of(torch.zeros(N, E), evenly(1), gate=gate), ALL)
    assert loss.item() == pytest.approx(gate.sigmoid().mean().item(), rel=1e-5)
    loss.backward()
    assert gate.grad is not None
    assert (gate.grad > 0).all()


def test_the_entropy_loss_is_the_entropy_in_nats() -> None:
    even = layer_of(torch.zeros(N, E), evenly(1))
    assert router_entropy_loss(even, ALL).item() == pytest.approx(torch.tensor(E).log().item(), rel=1e-5)
    logits = torch.zeros(N, E)
    logits[:, 2] = 1e3  # probabilities of exactly 0 must give no nan, forward or backward
    logits.requires_grad_()
    loss = router_entropy_loss(layer_of(logits, evenly(1)), ALL)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_less_entropy_means_fewer_experts() -> None:
    """T35: under a fixed threshold, minimising this loss alone brings the router from most experts to one."""
    torch.manual_seed(0)
    router = Router(D, FFNConfig(num_experts=E, controller="fixed", router_top_p=0.7))
    torch.nn.init.normal_(router.weight, std=0.02)
    x = torch.randn(N, D)
    descent = torch.optim.Adam(router.parameters(), lr=0.05)
    used = []
    for _ in range(60):
        routes = router(x, router.level())
        used.append(routes.selected_experts.sum(-1).float().mean().item())
        descent.zero_grad()
        router_entropy_loss(LayerRouting(ALL, routes, None, None, None), ALL).backward()
        descent.step()
    assert used[0] > 2.5
    assert used[-1] < 1.2


def test_cross_entropy_is_the_mean_over_the_tokens_that_count() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(B, T, V, generator=generator), tiny_ids(1)
    counted = torch.rand(B, T, generator=generator) < 0.6
    by_hand = [
        -logits[b, t].softmax(-1)[targets[b, t]].log().item() for b in range(B) for t in range(T) if counted[b, t]
    ]
    assert cross_entropy(logits, targets, counted).item() == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)
    assert cross_entropy(logits, targets, torch.zeros_like(counted)).item() == 0


@pytest.mark.parametrize("name", rest_slow(CONFIGS, COVER))
def test_the_loss_is_the_weighted_sum_of_its_named_parts(name: str) -> None:
    model = copy.deepcopy(tiny_model(name)).train()
    counted = torch.arange(T).expand(B, T) < T - 4
    weights = LossConfig(
        load_balancing_loss=0.5,
        router_z_loss=0.25,
        router_entropy_loss=0.125,
        depth_z_loss=2,
        head_balancing_loss=0.75,
        head_z_loss=0.625,
        threshold_loss=1.5,
        window_loss=0.7,
        exit_loss=3,
        exit_router_loss=0.3,
    )
    out = model(tiny_ids())
    total, parts = training_loss(model, out, tiny_ids(1), counted, weights)
    config = model.config
    expected = {"cross_entropy"}
    if config.ffn.routing == "relu":
        expected.add("router_l1_loss")
    elif config.ffn.routing != "dense":
        expected |= {"load_balancing_loss", "router_z_loss", "router_entropy_loss"}
    if config.heads.routing != "all":
        expected |= {"head_balancing_loss", "head_z_loss"}
    if any(config.has_depth_router(layer) for layer in range(config.num_layers)):
        expected.add("depth_z_loss")
    if config.attention.window_kind == "learned":
        expected.add("window_loss")
    sections = (config.ffn, config.heads, config.depth)
    if any(one.controller == "learned" or (one.controller == "fixed" and one.per_token) for one in sections):
        expected.add("threshold_loss")
    if config.depth.exit_layers:
        expected.add("exit_loss")
    if config.depth.exit_criterion == "router":
        expected.add("exit_router_loss")
    assert set(parts) == expected
    strengths = weights.model_dump() | {"cross_entropy": 1.0, "router_l1_loss": 1.0}
    by_hand = sum(strengths[part] * value.item() for part, value in parts.items())
    assert total.item() == pytest.approx(by_hand, rel=1e-6)
    assert all(not value.requires_grad for value in parts.values())


@pytest.mark.parametrize("name", ["top_p", "both_none"])
def test_targets_that_do_not_count_change_no_gradient(name: str) -> None:
    """T34, for the whole loss: padding at the end of a text, whatever stands there."""
    counted = torch.arange(T).expand(B, T) < T - 5
    gradients = []
    for seed in (1, 2):
        model = copy.deepcopy(tiny_model(name)).train()
        ids, targets = tiny_ids(), tiny_ids(1)
        ids = torch.where(counted, ids, tiny_ids(seed))
        targets = torch.where(counted, targets, tiny_ids(seed))
        loss, _ = training_loss(model, model(ids), targets, counted, LossConfig(router_entropy_loss=0.1))
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
