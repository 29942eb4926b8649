"""ReLU routing (ReMoE): which experts a token has, perhaps none, and how the L1 loss holds their average. N tokens."""

from typing import Any

import numpy as np
import pytest
import torch
from support.models import busy_thresholds, decisions, even_thresholds, judge, tiny_ids, tiny_model, variant
from support.routers import E, N, router_of, stream

from adaptive_lm.train.model import FFNConfig, LossConfig, Transformer, training_loss
from adaptive_lm.train.model.losses import router_l1_loss
from adaptive_lm.train.model.routing.controllers import L1Controller

ALL = torch.ones(N, dtype=torch.bool)
RELU = {"routing": "relu"}


def test_a_token_has_the_experts_of_positive_logit_and_their_logits_are_the_weights() -> None:
    router = router_of("experts", **RELU)
    assert router.level() == 1
    routes = router(next(stream()), router.level())
    torch.testing.assert_close(routes.routing_weights, routes.router_logits.relu())
    assert torch.equal(routes.selected_experts, routes.router_logits > 0)


def test_a_lower_level_keeps_the_strongest_gates_up_to_that_share_of_their_sum() -> None:
    router = router_of("experts", **RELU)
    x = next(stream())
    last = None
    for level in (1.0, 0.9, 0.5, 1e-6):
        routes = router(x, torch.tensor(level))
        gates = routes.router_logits.relu()
        for row, chosen in zip(gates, routes.selected_experts, strict=True):
            order = row.argsort(descending=True)
            before = torch.cat([torch.zeros(1), row[order].cumsum(0)[:-1]]) / row.sum().clamp(min=1e-20)
            expected = {
                int(e) for e, mass in zip(order, before, strict=True) if row[e] > 0 and (mass < level or level == 1)
            }
            assert set(chosen.nonzero().flatten().tolist()) == expected
        if last is not None:
            assert not (routes.selected_experts & ~last).any(), "a lower level only leaves experts out"
        last = routes.selected_experts


def test_a_token_without_a_positive_gate_has_no_expert_and_gets_nothing() -> None:
    model = tiny_model("relu")
    moe = model.blocks()[0].moe
    assert moe is not None
    x = torch.randn(400, 32, generator=torch.Generator().manual_seed(0))
    out, routes = moe(x, torch.ones(400, dtype=torch.bool), torch.tensor(1.0))
    none = ~routes.selected_experts.any(-1)
    assert 0 < none.sum() < 400
    assert (out[none] == 0).all()
    assert (routes.router_probs[none] == 0).all()
    assert out[~none].abs().sum(-1).min() > 0


def test_a_logit_that_is_not_a_number_selects_every_expert() -> None:
    router = router_of("experts", **RELU)
    x = next(stream()).clone()
    x[3, 0] = torch.nan
    routes = router(x, router.level())
    assert routes.selected_experts[3].all()
    assert torch.equal(routes.selected_experts[4:], routes.router_logits[4:] > 0)


def test_the_coefficient_grows_while_too_many_run_and_shrinks_while_too_few_do() -> None:
    controller = L1Controller()
    for error, expected in ((-0.3, 1.2e-8), (-5.0, 1.44e-8), (0.1, 1.2e-8), (0.0, 1.2e-8)):
        controller.observe(torch.tensor(error))
        assert controller.coefficient.item() == pytest.approx(expected)


def loss_of(model: Transformer, ids: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor], Any]:
    out = model(ids)
    counted = torch.ones_like(ids, dtype=torch.bool)
    return *training_loss(model, out, ids.roll(-1, 1), counted, LossConfig()), out


def test_the_loss_is_that_of_the_paper() -> None:
    """C / L sum over layers and experts of f R, with f = E / (k T) times the number of tokens that have the expert."""
    model, ids = Transformer(variant(ffn={**RELU, "experts_per_token": 1.5})), tiny_ids()
    for layer, block in enumerate(model.blocks()):
        assert block.moe is not None
        assert block.moe.router.l1 is not None
        block.moe.router.l1.coefficient.fill_(0.1 * (layer + 1))
    out, expected = model(ids), 0.0
    for layer, one in enumerate(out.routing):
        assert one.routes is not None
        gates = one.routes.router_logits.relu()  # (T, E)
        share = 4 / (1.5 * len(gates)) * (gates > 0).sum(0)
        expected += 0.1 * (layer + 1) / 4 * (share * gates.mean(0)).sum().item()
    found = router_l1_loss(model, out, torch.ones(ids.numel(), dtype=torch.bool))
    assert found is not None
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_it_stands_among_the_losses_in_place_of_the_balancing_loss() -> None:
    model, ids = Transformer(variant(ffn=RELU)), tiny_ids()
    loss, parts, _ = loss_of(model, ids)
    assert set(parts) == {"cross_entropy", "router_l1_loss"}
    assert loss.item() == pytest.approx(parts["cross_entropy"].item() + parts["router_l1_loss"].item())


@pytest.mark.parametrize("wanted", [0.75, 1.5])
def test_training_brings_the_average_down_to_the_one_wanted(wanted: float) -> None:
    """The loss only lowers it; after a swing below, the cross-entropy has to raise it, on random text by chance."""
    torch.manual_seed(0)
    model = Transformer(variant(num_layers=2, ffn={**RELU, "experts_per_token": wanted}))
    for router in model.routers("experts"):
        router.l1.coefficient.fill_(1e-4)  # reached after 50 steps from where it starts
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    averages = []
    for step in range(160):
        loss, _, out = loss_of(model, tiny_ids(step, batch=4))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.observe(out)
        averages.append(
            [one.routes.selected_experts.sum(-1).float().mean().item() for one in out.routing if one.routes]
        )
    assert np.mean(averages[0]) > 1.8, "half of the experts have a positive logit at the start"
    assert np.mean(averages[100:]) == pytest.approx(wanted, abs=0.2)


def test_sparsity_lets_the_wanted_average_follow_a_schedule() -> None:
    model = Transformer(variant(ffn={**RELU, "experts_per_token": 1.0}))
    model.set_sparsity(0.5)
    assert model.routers("experts")[0].target_units == 2.5


def test_its_state_is_part_of_a_checkpoint() -> None:
    names = [name for name in tiny_model("relu").state_dict() if name.endswith("l1.coefficient")]
    assert len(names) == 4


def test_the_table_of_the_dial_gives_the_level_for_an_average() -> None:
    """A share s of the table is the level at which s E experts run on average, the tokens without any counted."""
    router = router_of("experts", **RELU)
    batches = [x for _, x in zip(range(20), stream(), strict=False)]
    with torch.no_grad():
        for x in batches:
            router.observe_routes(router(x, router.level()), ALL)
        for wanted in (0.99, 1.5, 2.5, 3.5):
            level = router.controller.threshold(wanted / E).clamp(min=1e-6)
            used = torch.cat([router(x, level).selected_experts.sum(-1).float() for x in batches]).mean().item()
            assert used == pytest.approx(wanted, abs=0.1)


@pytest.mark.parametrize("level", [1.0, 0.6])
def test_decisions_and_logits_are_those_of_the_plain_model(level: float) -> None:
    model, ids = tiny_model("relu"), tiny_ids()
    limits = busy_thresholds(model.config) if level < 1 else even_thresholds(4)
    plain = judge(model, ids, limits)
    assert not plain.near_ties().any()
    with torch.no_grad():
        out = model(ids, limits)
    for name, found in decisions(out).items():
        np.testing.assert_array_equal(found.numpy(), getattr(plain, name), err_msg=name)
    np.testing.assert_allclose(out.logits.numpy(), plain.logits, rtol=0, atol=5e-5)
    assert (plain.layers_run & ~plain.selected_experts.any(-1)).any(), "tokens that run a layer without an expert"


def test_gates_are_weights_by_default() -> None:
    assert not FFNConfig(routing="relu").renormalize
    assert FFNConfig(routing="top_p").renormalize
    assert FFNConfig(**FFNConfig(routing="relu").model_dump()) == FFNConfig(routing="relu")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"renormalize": True}, "under relu the gates are the weights; leave it out"),
        ({"most_experts": 2}, "most_experts is set, but routing is relu"),
        ({"score": "sigmoid"}, "score is set, but routing is relu"),
        ({"selection_bias": True}, "selection_bias is set, but routing is relu"),
        ({"controller": "pi"}, "controller is pi, but routing relu has no threshold; leave it out"),
        ({"per_token": True}, "per_token is True, but routing relu has no threshold; leave it out"),
        ({"experts_per_token": 9}, "experts_per_token is 9.0 but num_experts is only 8"),
    ],
)
def test_what_nothing_would_read_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FFNConfig(routing="relu", **fields)
