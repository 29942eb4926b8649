"""The quantile controller: holds an average, forgets nothing in a checkpoint, learns nothing in evaluation."""

import copy

import numpy as np
import pytest
import torch
from tiny_models import CONFIGS, B, T, tiny_ids, tiny_model

from adaptive_lm.train.model import DepthConfig, FFNConfig, Transformer
from adaptive_lm.train.model.controller import GRID_POINTS, QuantileController, quantiles
from adaptive_lm.train.model.depth import DepthRouter
from adaptive_lm.train.model.router import Router


@pytest.mark.parametrize("count", [1, 2, 3, 32, 33, 34, 1000])
def test_quantiles_are_those_of_numpy(count: int) -> None:
    scores = torch.randn(count, generator=torch.Generator().manual_seed(count)).exp()
    expected = np.quantile(scores.double().numpy(), np.linspace(0, 1, GRID_POINTS))
    np.testing.assert_allclose(quantiles(scores).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.1, 1 / 3, 0.5, 0.999, 1.0])
def test_the_threshold_for_a_share_lies_between_the_entries_of_the_table(share: float) -> None:
    controller = QuantileController(torch.randn(200, generator=torch.Generator().manual_seed(0)).exp(), ema=0.5)
    expected = np.interp(share, np.linspace(0, 1, GRID_POINTS), controller.table.numpy())
    assert controller.threshold(share).item() == pytest.approx(expected, rel=1e-5)


def test_the_first_batch_sets_the_table_and_the_next_ones_move_it() -> None:
    controller = QuantileController(torch.zeros(2), ema=0.75)
    controller.observe(torch.full((9,), 4.0))
    assert (controller.table == 4).all()
    controller.observe(torch.full((9,), 8.0))
    assert (controller.table == 5).all()
    controller.observe(torch.empty(0))
    assert (controller.table == 5).all()
    assert controller.num_updates == 2


@pytest.mark.parametrize("wanted", [1.0, 1.3, 1.6, 3.0, 6.0, 8.0])
def test_a_router_holds_its_average_while_the_scores_sharpen(wanted: float) -> None:
    """T35. The stream is skewed towards the first experts, and its temperature falls by half on the way."""
    E, D, N = 8, 16, 512
    generator = torch.Generator().manual_seed(0)
    router = Router(D, FFNConfig(num_experts=E, experts_per_token=wanted))
    direction = torch.randn(E, D, generator=generator) + torch.linspace(1, 0, E)[:, None]
    used = []
    for step in range(150):
        router.weight.data = direction * (0.2 + 0.2 * min(step, 100) / 100)
        routes = router(torch.randn(N, D, generator=generator), router.default_top_p())
        used.append(routes.selected_experts.sum(-1).float().mean().item())
        router.observe(routes.mass_before)
    assert np.mean(used[110:]) == pytest.approx(wanted, rel=0.03)
    assert np.mean(used[20:100]) == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_depth_router_holds_its_share_while_the_scores_drift(share: float) -> None:
    D, N = 16, 512
    generator = torch.Generator().manual_seed(0)
    router = DepthRouter(D, DepthConfig(layers_share=share), 1e-5)
    runs = []
    for step in range(80):
        torch.nn.init.constant_(router.weight, 0.3)
        torch.nn.init.constant_(router.bias, -2 + 4 * min(step, 50) / 50)
        _, scores = router(torch.randn(N, D, generator=generator))
        runs.append((scores >= router.default_threshold()).float().mean().item())
        router.controller.observe(scores)
    assert np.mean(runs[60:]) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("name", ["top_p", "eight_experts"])
def test_a_model_holds_the_average_of_every_layer(name: str) -> None:
    model = copy.deepcopy(tiny_model(name)).train()
    with torch.no_grad():
        for seed in range(30):
            out = model(tiny_ids(seed, batch=8))
            model.observe(out)
    out = model(tiny_ids(99, batch=16))
    for layer in out.routing:
        assert layer.routes.selected_experts.sum(-1).float().mean().item() == pytest.approx(1.6, abs=0.15)


@pytest.mark.parametrize("num_experts", [4, 8])
def test_asking_for_every_expert_gives_every_expert(num_experts: int) -> None:
    router = Router(16, FFNConfig(num_experts=num_experts, experts_per_token=num_experts))
    torch.nn.init.normal_(router.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    for seed in range(3):
        x = torch.randn(64, 16, generator=torch.Generator().manual_seed(seed))
        routes = router(x, router.default_top_p())
        assert routes.selected_experts.all()
        router.observe(routes.mass_before)


def test_a_fixed_threshold_stays_where_it_was_put() -> None:
    router = Router(16, FFNConfig(num_experts=4, controller="fixed", router_top_p=0.4))
    router.observe(torch.rand(10, 4))
    assert router.default_top_p().item() == pytest.approx(0.4)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", CONFIGS)
def test_only_observing_moves_the_tables(name: str, mode: str) -> None:
    """T37. Neither reading nor differentiating does; the trainer observes, evaluation never."""
    model = copy.deepcopy(tiny_model(name)).train(mode == "train")
    before = copy.deepcopy(dict(model.named_buffers()))
    out = model(tiny_ids())
    out.logits.sum().backward()
    for key, value in model.named_buffers():
        assert torch.equal(value, before[key]), key
    model.observe(out)
    moved = {key for key, value in model.named_buffers() if not torch.equal(value, before[key])}
    routed = model.config.ffn.routing != "dense"
    expected = {f"layers.{i}.moe.router.controller" for i in range(4) if routed}
    expected |= {f"layers.{i}.depth_router.controller" for i in range(4) if model.config.has_depth_router(i)}
    assert moved == {f"{controller}.{buffer}" for controller in expected for buffer in ("table", "num_updates")}


def test_tokens_that_do_not_count_are_not_observed() -> None:
    """Nor are those that skipped the layer: its router never saw them."""
    counted = torch.zeros(B, T, dtype=torch.bool)
    counted[1, 2:9] = True
    model = copy.deepcopy(tiny_model("both_none")).train()
    with torch.no_grad():
        out = model(tiny_ids())
        model.observe(out, counted)
    for i, layer in enumerate(out.routing):
        shown = layer.routes.mass_before[counted.flatten() & layer.runs][:, 1:]
        assert torch.equal(model.layers[i].moe.router.controller.table, quantiles(shown))
    scores = out.routing[1].depth_scores[counted.flatten()]
    assert torch.equal(model.layers[1].depth_router.controller.table, quantiles(scores))


def test_the_tables_are_part_of_a_checkpoint() -> None:
    model = copy.deepcopy(tiny_model("both_none")).train()
    with torch.no_grad():
        for seed in range(3):
            model.observe(model(tiny_ids(seed)))
    other = Transformer(model.config)
    other.load_state_dict(model.state_dict())
    for mine, theirs in zip(model.default_thresholds(), other.default_thresholds(), strict=True):
        assert torch.equal(mine, theirs)
    fresh = Transformer(model.config).default_thresholds()
    assert not torch.equal(model.default_thresholds().router_top_p, fresh.router_top_p)
    assert not torch.equal(model.default_thresholds().depth_threshold, fresh.depth_threshold)
