"""Zero-computation experts (MoE++): what they give, how they are balanced, and which average is held. N tokens."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from support.cover import rest_slow
from support.models import ZERO, busy_thresholds, decisions, judge, tiny_ids, tiny_model, variant
from support.routers import E, N, router_of, stream
from torch import Tensor

from adaptive_lm.train.model import FFNConfig, LossConfig, Transformer, training_loss
from adaptive_lm.train.model.block import LayerRouting
from adaptive_lm.train.model.experts.moe import MoE
from adaptive_lm.train.model.losses import load_balancing_loss

ALL = torch.ones(N, dtype=torch.bool)
ONE = torch.tensor(1e-6)  # only the first rank


def layer_that_takes(number: int, zero: dict[str, int], **ffn: Any) -> MoE:
    """Return a layer whose router prefers one choice for every token: an expert, or one of those after them."""
    config = variant(ffn={"zero_experts": zero, **ffn})
    moe = MoE(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(std=0.3)
        moe.router.weight.zero_()
        moe.router.weight[number, 0] = 9.0
    return moe


def tokens() -> Tensor:
    x = torch.randn(N, 32, generator=torch.Generator().manual_seed(1))
    x[:, 0] = x[:, 0].abs() + 0.5
    return x


@pytest.mark.parametrize(("number", "kind"), [(4, "zero"), (5, "copy"), (6, "constant"), (7, "constant")])
def test_each_kind_gives_its_own_output_and_runs_no_expert(number: int, kind: str) -> None:
    moe, x = layer_that_takes(number, ZERO), tokens()
    out, routes = moe(x, ALL, ONE)
    assert not routes.selected_experts.any()
    assert routes.zero is not None
    assert (routes.zero.selected.nonzero()[:, 1] == number - 4).all()
    assert len(routes.zero.selected.nonzero()) == N
    expected = {"zero": torch.zeros_like(x), "copy": x}
    if kind == "constant":
        assert moe.zero_experts is not None
        mix, constants = moe.zero_experts.mix, moe.zero_experts.constants
        assert mix is not None
        assert constants is not None
        share = (x @ mix[number - 6]).sigmoid()[:, None]
        expected["constant"] = share * x + (1 - share) * constants[number - 6]
    torch.testing.assert_close(out, expected[kind], rtol=0, atol=1e-5)


def test_a_token_without_an_expert_still_gets_the_shared_expert() -> None:
    moe, x = layer_that_takes(4, {"zeros": 1}, shared_expert_dim=20), tokens()
    out, _ = moe(x, ALL, ONE)
    assert moe.shared is not None
    torch.testing.assert_close(out, moe.shared(x), rtol=0, atol=1e-6)


def test_the_weights_of_experts_and_zero_computation_experts_add_up_to_1() -> None:
    router = router_of("experts", zero_experts=ZERO)
    routes = router(next(stream()), torch.tensor(0.6))
    total = routes.routing_weights.sum(-1) + routes.zero.weights.sum(-1)
    torch.testing.assert_close(total, torch.ones(N))
    mixed = routes.selected_experts.any(-1) & routes.zero.selected.any(-1)
    assert mixed.any(), "tokens with both"
    assert (~routes.selected_experts.any(-1)).any(), "tokens without an expert"


@pytest.mark.parametrize(
    ("wanted", "controller"),
    rest_slow(
        itertools.product([0.8, 1.6, 5.0], ["quantile", "pi"]), [(0.8, "quantile"), (1.6, "pi"), (5.0, "quantile")]
    ),
)
def test_the_average_that_is_held_is_of_the_experts_alone(controller: str, wanted: float) -> None:
    router = router_of("experts", wanted, controller=controller, zero_experts={"zeros": 8, "constants": 8})
    averages = []
    for step, x in zip(range(300), stream(), strict=False):
        with torch.no_grad():
            routes = router(x, router.level())
            router.observe_routes(routes, ALL)
        if step >= 200:
            averages.append(routes.selected_experts.sum(-1).float().mean().item())
    assert np.mean(averages) == pytest.approx(wanted, abs=0.03 * E)


def test_all_experts_can_be_asked_for() -> None:
    router = router_of("experts", float(E), zero_experts=ZERO)
    assert router.level() == 1
    assert router(next(stream()), router.level()).selected_experts.all()


def test_a_learned_threshold_counts_the_experts_alone() -> None:
    router = router_of("experts", controller="learned", zero_experts=ZERO)
    routes = router(next(stream()), router.level())
    torch.testing.assert_close(routes.soft_count.detach(), routes.selected_experts.sum(-1).float())
    routes.soft_count.sum().backward()
    assert router.level_logit.grad.abs() > 0


def routing(shares: Tensor, tau: float) -> LayerRouting:
    """Return the routing of one choice per token, and of probabilities, with the given shares (E + Z,)."""
    router = router_of("experts", zero_experts={"zeros": 4, "tau": tau})
    routes = router(next(stream()), ONE)
    counts = (shares * N).round().long()
    chosen = torch.nn.functional.one_hot(torch.arange(E + 4).repeat_interleave(counts), E + 4).bool()
    assert len(chosen) == N
    routes = routes._replace(
        router_probs=shares.expand(N, -1),
        selected_experts=chosen[:, :E],
        zero=routes.zero._replace(selected=chosen[:, E:]),
    )
    return LayerRouting(ALL, routes, None, None, None)


def test_the_balancing_loss_is_1_at_its_minimum_where_zero_computation_experts_have_more() -> None:
    """Shares as 1 / tau: with tau 0.5, each of the four takes twice as many tokens as an expert."""
    losses = []
    for of_expert in (24, 28, 32, 36, 40):
        shares = torch.tensor([of_expert] * E + [(N - E * of_expert) / 4] * 4) / N
        losses.append(load_balancing_loss(routing(shares, 0.5), ALL).item())
    assert losses[2] == pytest.approx(1)
    assert losses[0] > losses[1] > 1.01
    assert losses[4] > losses[3] > 1.01


def test_the_paper_weighs_a_zero_computation_expert_by_tau() -> None:
    """L = sum over experts of f P + tau times the sum over the others, up to a constant factor (MoE++)."""
    shares = torch.tensor([0.125] * 4 + [0.0625] * 4 + [0.0625] * 4)
    tau = 0.75
    weights = torch.tensor([1.0] * E + [tau] * 4)
    expected = (weights * shares * shares).sum() * (E + 4 / tau)
    assert load_balancing_loss(routing(shares, tau), ALL).item() == pytest.approx(expected.item(), rel=1e-5)


def test_decisions_and_logits_are_those_of_the_plain_model() -> None:
    model, ids = tiny_model("zero_experts_none"), tiny_ids()
    limits = busy_thresholds(model.config)
    plain = judge(model, ids, limits)
    assert not plain.near_ties().any()
    with torch.no_grad():
        out = model(ids, limits)
    for name, found in decisions(out).items():
        np.testing.assert_array_equal(found.numpy(), getattr(plain, name), err_msg=name)
    np.testing.assert_allclose(out.logits.numpy(), plain.logits, rtol=0, atol=5e-5)
    empty = plain.layers_run & ~plain.selected_experts.any(-1)
    assert empty.any(), "tokens that run a layer without an expert"
    assert plain.zero_experts.any((0, 1, 2)).all(), "every zero-computation expert is used"


def test_all_weights_learn_and_usage_tells_both_kinds_apart() -> None:
    torch.manual_seed(0)
    model = Transformer(variant(ffn={"zero_experts": ZERO}))
    ids = tiny_ids()
    out = model(ids)
    loss, parts = training_loss(model, out, ids.roll(-1, 1), torch.ones_like(ids, dtype=torch.bool), LossConfig())
    loss.backward()
    assert "load_balancing_loss" in parts
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    usage = out.usage()
    assert usage["experts_per_token"] > 0
    assert usage["zero_experts_per_token"] > 0
    selected = torch.stack([layer.routes.selected_experts.sum() for layer in out.routing if layer.routes])
    assert usage["experts_per_token"] == pytest.approx(selected.sum().item() / (4 * ids.numel()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"zero_experts": {"zeros": 1}, "routing": "dense"}, "zero_experts is set, but routing is dense"),
        ({"zero_experts": {"zeros": 1}, "routing": "relu"}, "set routing to top_p"),
        ({"zero_experts": {"zeros": 1}, "most_experts": 2}, "exclude each other"),
        ({"experts_per_token": 0.5}, "every token takes at least one expert: set 1 or more, or add zero_experts"),
        ({"zero_experts": {"zeros": -1}}, "greater than or equal to 0"),
        ({"zero_experts": {"zero": 1}}, "Extra inputs are not permitted"),
        ({"routing": "top_k", "experts_per_token": 0.5, "zero_experts": {"zeros": 1}}, "set it to 1"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_cure(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FFNConfig(**fields)


def test_a_layer_without_them_has_no_weights_of_theirs() -> None:
    names = [name for name in tiny_model("top_p").state_dict() if "zero" in name or "l1" in name or "balance" in name]
    assert names == []
    moe = layer_that_takes(4, {"zeros": 2})
    assert moe.zero_experts is None
    assert moe.router.weight.shape == (6, 32)
    assert math.isclose(moe.router.balance[-1].item(), 0.75)
