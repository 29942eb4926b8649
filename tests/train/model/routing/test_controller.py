"""The controllers, alone and in a model: a checkpoint keeps their state, and only training moves them.

How routers hold their averages by them is asked in test_thresholds.py.
"""

import copy
import itertools

import numpy as np
import pytest
import torch
from support.cover import rest_slow
from support.models import COVER, B, T, tiny_ids, tiny_model

from adaptive_lm.train.model import Transformer
from adaptive_lm.train.model.routing.controllers import GRID_POINTS, PIController, QuantileController, quantiles


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


@pytest.mark.parametrize("start", [0.0, 0.3, 0.9])
def test_a_pi_controller_brings_an_average_to_its_target_and_keeps_it_there(start: float) -> None:
    """The average rises with the level, not in a line, and moves by itself on the way."""
    controller = PIController(start, (0.05, 0.01))
    averages = []
    for step in range(600):
        average = 4 * controller.level.item() ** 2 + (0.3 if step > 300 else 0.0)
        averages.append(average)
        controller.observe(torch.tensor(1.7 - average))
    assert np.mean(averages[250:300]) == pytest.approx(1.7, abs=0.02)
    assert averages[302] > 1.9
    assert np.mean(averages[550:]) == pytest.approx(1.7, abs=0.02)
    assert controller.num_updates == 600


def test_a_pi_controller_follows_its_formula() -> None:
    """Compute level += kp (error - last error) + ki error; the first step has no last error."""
    controller = PIController(0.5, (0.2, 0.1))
    level, last = 0.5, 0.4
    for error in (0.4, -0.1, 0.3):
        controller.observe(torch.tensor(error))
        level, last = level + 0.2 * (error - last) + 0.1 * error, error
        assert controller.level.item() == pytest.approx(level)


def test_a_pi_controller_at_the_end_of_its_range_comes_back_at_once() -> None:
    """Its integral is the level itself and cannot wind up; 1 is never reached, for it would mean everything."""
    for end, sign in ((1.0, 1.0), (0.0, -1.0)):
        controller = PIController(0.5, (0.05, 0.01))
        for _ in range(5000):
            controller.observe(torch.tensor(0.3 * sign))
        assert controller.level.item() == pytest.approx(end, abs=1e-5)
        assert controller.level < 1
        controller.observe(torch.tensor(-0.3 * sign))
        assert abs(controller.level.item() - end) > 0.02


@pytest.mark.parametrize(
    ("name", "mode"),
    rest_slow(
        itertools.product(COVER, ["train", "eval"]),
        [*((name, "train") for name in COVER), *((name, "eval") for name in COVER[::4])],
    ),
)
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
    config, expected = model.config, set()
    recursion = config.recursion
    for layer in range(config.num_layers):
        if layer in recursion.repeated:
            if recursion.begins(layer):
                expected |= {f"layers.{layer}.depth_router.controller.{one}" for one in ("table", "num_updates")}
            continue
        ran = bool(out.routing[layer].runs.any())  # a router that no token came to has nothing to observe
        chooses_heads = ran and config.heads.routing != "all" and config.attends(layer)
        sections = {
            f"layers.{layer}.moe.router": None if not ran or config.is_dense(layer) else config.ffn,
            f"layers.{layer}.attention.head_router": config.heads if chooses_heads else None,
            f"layers.{layer}.depth_router": config.depth if config.has_depth_router(layer) else None,
        }
        for router, section in sections.items():
            alone = section is config.ffn and config.ffn.candidates == 1  # the only candidate is always taken
            if section is not None and not alone:
                expected |= {f"{router}.controller.{buffer}" for buffer in ("table", "num_updates")}
            if section is config.ffn and config.ffn.routing == "relu":
                expected.add(f"{router}.l1.coefficient")
            if section is not None and section.controller == "pi" and section.scope == "layer":
                expected |= {f"{router}.pi.{buffer}" for buffer in ("level", "error", "num_updates")}
        if config.attention.window_kind == "entropy" and mode == "train":
            controller = f"layers.{layer}.attention.window_controller"
            expected |= {f"{controller}.{buffer}" for buffer in ("spread", "window", "num_updates")}
    if config.heads.scope == "model":
        expected |= {f"pi.heads.{buffer}" for buffer in ("level", "error", "num_updates")}
    assert moved == expected


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
    scores = out.routing[1].depth.scores[counted.flatten()]
    assert torch.equal(model.layers[1].depth_router.controller.table, quantiles(scores))


@pytest.mark.parametrize("name", ["both_none", "controllers", "everything_project", "heads_adaptive"])
def test_what_the_controllers_hold_is_part_of_a_checkpoint(name: str) -> None:
    model = copy.deepcopy(tiny_model(name)).train()
    with torch.no_grad():
        for seed in range(3):
            model.observe(model(tiny_ids(seed)))
    other = Transformer(model.config)
    other.load_state_dict(model.state_dict())
    both = (each.default_thresholds().given().values() for each in (model, other))
    for mine, theirs in zip(*both, strict=True):
        assert torch.equal(mine, theirs)
    mine, fresh, config = model.default_thresholds(), Transformer(model.config).default_thresholds(), model.config
    adapted = {
        "router_top_p": config.ffn.routing == "top_p",
        "depth_threshold": config.has_depth_router(1),
        "exit_threshold": False,
        "head_top_p": config.heads.routing in ("top_p", "adaptive"),
    }
    for threshold, adapts in adapted.items():
        assert torch.equal(getattr(mine, threshold), getattr(fresh, threshold)) is not adapts, threshold
