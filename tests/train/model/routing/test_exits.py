"""Early exits and layer dropout: confidence, the losses of the exits, their curricula.

B batch, T time, V vocabulary, L layers.
"""

import copy

import pytest
import torch
from reference import routing as reference_routing
from support.models import (
    CONFIGS,
    B,
    T,
    V,
    busy_thresholds,
    decisions,
    even_thresholds,
    tiny_ids,
    tiny_model,
    variant,
)

from adaptive_lm.train.model import DepthConfig, LossConfig, Transformer, cross_entropy, training_loss
from adaptive_lm.train.model.losses import exit_losses, exit_weights_at
from adaptive_lm.train.model.routing.depth import dropout_rates, layer_dropout_rate
from adaptive_lm.train.model.routing.exits import ExitRouter, agreement_targets, confidence

ALL = torch.ones(B, T, dtype=torch.bool)
LAYERS = (1, 3, 5)
CRITERIA = {"top_prob": "exits_none", "margin": "exit_margin", "entropy": "exit_entropy", "router": "exit_router"}


@pytest.mark.parametrize("criterion", ["top_prob", "margin", "entropy"])
def test_confidence_is_its_formula(criterion: str) -> None:
    logits = 4 * torch.randn(B, T, V, generator=torch.Generator().manual_seed(0))
    found = confidence(criterion, logits)  # type: ignore[arg-type]
    assert found.shape == (B, T)
    for b in range(B):
        for t in range(T):
            expected = reference_routing.confidence(criterion, logits[b, t].double().numpy())
            assert found[b, t].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("criterion", ["top_prob", "margin", "entropy"])
def test_confidence_is_finite_where_all_but_one_are_impossible(criterion: str) -> None:
    logits = torch.full((1, V), -1e9)
    logits[0, 3] = 0.0
    assert confidence(criterion, logits).item() == pytest.approx(1)  # type: ignore[arg-type]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_higher_exit_threshold_keeps_more_tokens(criterion: str) -> None:
    """From a threshold of 0, which all tokens pass, to one of 1, which none does."""
    model, left = tiny_model(CRITERIA[criterion]), []
    with torch.no_grad():
        for leave in (0.0, 0.4, 0.7, 1.0):
            out = model(tiny_ids(), even_thresholds(4, leave=leave))
            left.append((out.exit_layer >= 0).sum().item())
            for layer, sure in out.exit_confidence.items():
                assert ((sure >= 0) & (sure <= 1)).all(), layer
    assert left == sorted(left, reverse=True)
    assert left[0] == B * T
    assert left[-1] == 0
    assert len(set(left)) > 2


def test_the_exit_loss_scores_the_head_after_each_exit_layer() -> None:
    """The same weights cut off after an exit layer make a model whose cross-entropy is that layer's part."""
    model = tiny_model("exits_none")
    with torch.no_grad():
        _, parts = training_loss(model, model(tiny_ids()), tiny_ids(1), ALL, LossConfig())
        losses = []
        for layer in model.config.depth.exit_layers:
            shallow = copy.deepcopy(model)
            shallow.layers = shallow.layers[: layer + 1]
            shallow.config = model.config.model_copy(update={"num_layers": layer + 1})
            losses.append(cross_entropy(shallow(tiny_ids()).logits, tiny_ids(1), ALL))
        weighted, _ = (
            training_loss(model, model(tiny_ids()), tiny_ids(1), ALL, LossConfig(exit_loss=1.0), weights)
            for weights in ({0: 0.25, 2: 0.75}, {0: 1.0})
        )
    assert parts["exit_loss"].item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert weighted[1]["exit_loss"].item() == pytest.approx((0.25 * losses[0] + 0.75 * losses[1]).item(), rel=1e-5)


def test_the_exit_loss_teaches_the_layers_before_the_exit_and_no_others() -> None:
    model = copy.deepcopy(tiny_model("exits_none")).train()
    out = model(tiny_ids())
    exit_losses(model, out, tiny_ids(1), ALL, {0: 0.5, 2: 0.5})["exit_loss"].backward()
    taught = [any(weight.grad is not None for weight in layer.parameters()) for layer in model.layers]
    assert taught == [True, True, True, False]
    assert all(model.layers[0].moe.gate_up.grad.flatten(1).any(1))


def test_an_exit_router_learns_where_the_last_layer_says_the_same_and_teaches_the_model_nothing() -> None:
    model = copy.deepcopy(tiny_model("exit_router")).train()
    out = model(tiny_ids())
    loss = exit_losses(model, out, tiny_ids(1), ALL, {0: 0.5, 2: 0.5})["exit_router_loss"]
    loss.backward()
    taught = {key for key, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert taught == {f"exit_routers.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")}
    by_hand = []
    for layer in (0, 2):
        score = model.exit_routers[str(layer)](out.exit_hidden[layer])
        agrees = model.head(out.exit_hidden[layer]).argmax(-1) == out.logits.argmax(-1)
        by_hand.append(-torch.where(agrees, score, 1 - score).log().mean())
    assert loss.item() == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-5)


def test_an_exit_router_comes_to_tell_agreement_from_the_state() -> None:
    """The targets are exactly where early and last logits choose alike, and the router separates them by gradient."""
    generator = torch.Generator().manual_seed(0)
    hidden, direction = torch.randn(400, 16, generator=generator), torch.randn(16, generator=generator)
    early = torch.randn(400, V, generator=generator)
    last = torch.where((hidden @ direction > 0)[:, None], 2 * early, -early)
    targets = agreement_targets(early, last)
    assert torch.equal(targets, (hidden @ direction > 0).float())
    router = ExitRouter(16)
    torch.nn.init.zeros_(router.weight)
    descent = torch.optim.Adam(router.parameters(), lr=0.1)
    for _ in range(100):
        descent.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(router.logits(hidden), targets).backward()
        descent.step()
    assert ((router(hidden) > 0.5) == targets.bool()).float().mean() > 0.97


def test_an_exit_router_learns_also_where_the_exits_have_no_loss_of_their_own() -> None:
    model = copy.deepcopy(tiny_model("exit_router")).train()
    _, parts = training_loss(model, model(tiny_ids()), tiny_ids(1), ALL, LossConfig(exit_loss=0.0))
    assert parts["exit_router_loss"] > 0


def test_exits_weigh_alike_or_by_the_layers_below_them() -> None:
    assert exit_weights_at(LossConfig(), LAYERS, 0, 1.0) == pytest.approx({1: 1 / 3, 3: 1 / 3, 5: 1 / 3})
    by_depth = exit_weights_at(LossConfig(exit_weighting="depth"), LAYERS, 0, 1.0)
    assert by_depth == pytest.approx({1: 3 / 34, 3: 10 / 34, 5: 21 / 34})


def test_the_rotational_curriculum_takes_one_exit_a_step_in_turn() -> None:
    turns = [exit_weights_at(LossConfig(exit_curriculum="rotational"), LAYERS, step, 0.5) for step in range(4)]
    assert turns == [{1: 1.0}, {3: 1.0}, {5: 1.0}, {1: 1.0}]


def test_the_gradual_curriculum_begins_with_the_last_exit_and_has_all_of_them_by_half_of_the_run() -> None:
    config = LossConfig(exit_curriculum="gradual")
    active = [list(exit_weights_at(config, LAYERS, 0, done)) for done in (0.0, 0.2, 0.3, 0.4, 0.5, 1.0)]
    assert active[0] == [5]
    assert active[-2:] == [[1, 3, 5]] * 2
    assert [len(exits) for exits in active] == sorted(len(exits) for exits in active)
    assert any(len(exits) == 2 for exits in active)
    for done in (0.0, 0.3, 1.0):
        assert sum(exit_weights_at(config, LAYERS, 0, done).values()) == pytest.approx(1)


def test_layer_dropout_rises_from_none_of_the_first_layer_to_all_of_the_rate_at_the_last() -> None:
    """LayerSkip (arXiv 2404.16710), eq. 2: exp(l ln 2 / (L - 1)) - 1."""
    assert dropout_rates(0.2, 3) == pytest.approx([0.0, 0.2 * (2**0.5 - 1), 0.2])
    assert dropout_rates(0.3, 1) == [0.0]


def test_the_curriculum_of_layer_dropout_rises_from_nothing_to_its_rate() -> None:
    rising = DepthConfig(layer_dropout=0.4, layer_dropout_curriculum="exponential")
    assert layer_dropout_rate(rising, 0.0) == 0
    assert layer_dropout_rate(rising, 0.5) == pytest.approx(0.4 * (2**0.5 - 1))
    assert layer_dropout_rate(rising, 1.0) == pytest.approx(0.4)
    assert layer_dropout_rate(DepthConfig(layer_dropout=0.4), 0.0) == 0.4


@pytest.mark.parametrize("skipped_kv", ["none", "project"])
def test_layer_dropout_leaves_layers_out_for_whole_sequences_and_only_in_training(skipped_kv: str) -> None:
    torch.manual_seed(0)
    model = Transformer(variant(depth={"layer_dropout": 0.5, "skipped_kv": skipped_kv}))
    ids = tiny_ids(batch=400, time=3)
    out = model.train()(ids)
    runs = decisions(out)["layers_run"]  # (L, B, T)
    assert torch.equal(runs, runs[..., :1].expand_as(runs)), "a sequence leaves a layer out as a whole"
    rates = 1 - runs[..., 0].float().mean(1)
    assert rates.tolist() == pytest.approx(dropout_rates(0.5, 4), abs=0.08)
    assert not decisions(out)["selected_experts"][~runs].any()
    model.set_layer_dropout(0.0)
    assert decisions(model(ids))["layers_run"].all()
    model.set_layer_dropout(0.5)
    assert decisions(model.eval()(ids))["layers_run"].all()


def test_a_sequence_that_left_a_layer_out_is_that_of_a_model_without_it() -> None:
    torch.manual_seed(0)
    model = Transformer(variant(depth={"layer_dropout": 0.9})).train()
    ids = tiny_ids(batch=16)
    out = model(ids)
    runs = decisions(out)["layers_run"][..., 0]  # (L, B)
    (b,) = torch.nonzero((runs == torch.tensor([1, 1, 0, 1])[:, None].bool()).all(0)).flatten()[:1].tolist()
    shallow = copy.deepcopy(model).eval()
    shallow.layers = torch.nn.ModuleList([model.layers[0], model.layers[1], model.layers[3]])
    shallow.config = model.config.model_copy(update={"num_layers": 3})
    torch.testing.assert_close(shallow(ids[b : b + 1]).logits, out.logits[b : b + 1], rtol=0, atol=1e-5)


def test_layer_dropout_and_what_left_before_are_not_shown_to_the_controllers() -> None:
    """The controllers of a layer that no token ran have seen nothing."""
    model = Transformer(variant(depth={"layer_dropout": 0.999}, heads={"routing": "top_p"})).train()
    model.set_layer_dropout(1.0)
    before = copy.deepcopy(model.layers[3].state_dict())
    model.observe(model(tiny_ids()))
    for key, value in model.layers[3].state_dict().items():
        assert torch.equal(value, before[key]), key
    assert model.layers[0].moe.router.controller.num_updates == 1


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.depth.exit_layers])
def test_exit_states_do_not_depend_on_thresholds_where_no_token_leaves(name: str) -> None:
    model = tiny_model(name)
    limits = busy_thresholds(model.config)._replace(exit_threshold=torch.ones(4))
    with torch.no_grad():
        out = model(tiny_ids(), limits)
    assert (out.exit_layer == -1).all()
    assert set(out.exit_confidence) == set(model.config.depth.exit_layers)
