"""Experts, heads and depth hold the wanted average: by controllers, by hand, and for each token.

N tokens. What is learned of it stands in test_learned_thresholds.py.
"""

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from support.cover import by_turns, rest_slow
from support.models import tiny_ids, tiny_model, variant
from support.routers import KINDS, LEAST, MOST, WANTED, N, router_of, stream, used

from adaptive_lm.train.model import Transformer

ALL = torch.ones(N, dtype=torch.bool)


@pytest.mark.parametrize(
    ("kind", "controller", "per_token"),
    rest_slow(
        itertools.product(KINDS, ["quantile", "pi"], [False, True]), by_turns(KINDS, ["quantile", "pi"], [False, True])
    ),
)
def test_a_controller_holds_the_average_while_the_scores_drift(kind: str, controller: str, per_token: bool) -> None:
    """T35. The router's weights double during the run, and the average is held before, during and after."""
    router = router_of(kind, controller=controller, per_token=per_token)
    start, averages = router.weight.detach().clone(), []
    for step, x in zip(range(500), stream(), strict=False):
        router.weight.data = start * (1 + min(max(step - 200, 0), 200) / 200)
        with torch.no_grad():
            routes = router(x, router.level())
            averages.append(used(routes).mean().item())
            router.observe_routes(routes, ALL)
    span = MOST[kind] - LEAST[kind]
    assert np.mean(averages[150:200]) == pytest.approx(WANTED[kind], abs=0.02 * span)
    assert np.mean(averages[200:400]) == pytest.approx(WANTED[kind], abs=0.05 * span)
    assert np.mean(averages[450:]) == pytest.approx(WANTED[kind], abs=0.02 * span)
    assert len({round(average, 3) for average in averages}) > 1


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (kind, wanted)
        for kind in KINDS
        for wanted in ("least", "most", 0.1, 0.9)
        if wanted in (0.1, 0.9) or kind != "depth"
    ],
)
@pytest.mark.parametrize("per_token", [False, True], ids=["level", "per_token"])
def test_the_whole_range_can_be_asked_for(kind: str, wanted: str | float, per_token: bool) -> None:
    """A layer that always runs has no router, and none never runs."""
    least, most = LEAST[kind], MOST[kind]
    asked = {"least": least, "most": most}[wanted] if isinstance(wanted, str) else least + (most - least) * wanted
    router = router_of(kind, asked, per_token=per_token)
    for _, x in zip(range(20), stream(), strict=False):
        with torch.no_grad():
            routes = router(x, router.level())
            router.observe_routes(routes, ALL)
    assert used(routes).mean().item() == pytest.approx(asked, abs=0.05 * (most - least))
    if wanted == "most":
        assert (used(routes) == most).all()


@pytest.mark.parametrize("kind", ["experts", "heads", "depth"])
def test_one_controller_of_the_whole_model_holds_the_mean_of_its_layers(kind: str) -> None:
    """All layers share its level, so those that route more sharply keep fewer."""
    control = {"controller": "pi", "scope": "model", "pi_gains": (0.1, 0.02)}
    wanted = {"experts": 2.0, "heads": 2.5, "depth": 0.5}[kind]
    torch.manual_seed(0)
    model = Transformer(
        variant(
            ffn={"experts_per_token": 2.0, **control} if kind == "experts" else None,
            heads={"routing": "top_p", "heads_per_token": 2.5, **control} if kind == "heads" else None,
            depth={"layers_share": 0.5, **control} if kind == "depth" else None,
        )
    )
    routers, averages = model.routers(kind), []
    with torch.no_grad():
        for layer, router in enumerate(routers):
            router.weight.copy_((0.1 + 0.1 * layer) * torch.randn(router.weight.shape))
            if kind == "depth":
                router.bias.fill_(0.3 * layer)
        for seed in range(100):
            out = model(tiny_ids(seed, batch=8))
            model.observe(out)
            routes = {
                "experts": [layer.routes for layer in out.routing],
                "heads": [layer.heads for layer in out.routing],
                "depth": [layer.depth for layer in out.routing if layer.depth],
            }[kind]
            averages.append([used(found).mean().item() for found in routes])
    name = {"experts": "router_top_p", "heads": "head_top_p", "depth": "depth_threshold"}[kind]
    levels = getattr(model.default_thresholds(), name)
    assert len(levels[levels > 0].unique()) == 1
    assert np.mean(averages[60:]) == pytest.approx(wanted, abs=0.04 * wanted)
    assert np.ptp(np.mean(averages[60:], 0)) > 0.1, "the layers differ, so their mean is not that of each"
    assert [key for key in model.state_dict() if ".pi." in f".{key}" and key.endswith("level")] == [f"pi.{kind}.level"]


LINE, LIST = {"first": 0.3, "last": 0.9}, (0.9, 0.2, 0.5, 0.6)


@pytest.mark.parametrize(
    ("level", "expected"),
    [(0.45, [0.45] * 4), (LIST, list(LIST)), (LINE, [0.3, 0.5, 0.7, 0.9])],
    ids=["number", "list", "line"],
)
@pytest.mark.parametrize("controller", ["fixed", "learned", "pi"])
def test_a_threshold_starts_where_the_config_puts_it(controller: str, level: Any, expected: list[float]) -> None:
    """A number, a list of one a layer, or a line from the first to the last."""
    control = {"controller": controller}
    model = Transformer(
        variant(
            ffn={"router_top_p": level, **control},
            heads={"routing": "top_p", "head_top_p": level, **control},
            depth={"layers_share": 0.5, "depth_threshold": level, **control},
        )
    )
    limits = model.default_thresholds()
    assert limits.router_top_p.tolist() == pytest.approx(expected, abs=1e-5)
    assert limits.head_top_p.tolist() == pytest.approx(expected, abs=1e-5)
    assert limits.depth_threshold.tolist() == pytest.approx([0, *expected[1:3], 0], abs=1e-5)
    with torch.no_grad():
        model.observe(model(tiny_ids()))
    moved = model.default_thresholds().router_top_p.tolist()
    assert (moved != pytest.approx(expected, abs=1e-5)) is (controller == "pi")


@pytest.mark.parametrize("kind", ["experts", "heads", "adaptive"])
def test_a_fixed_threshold_is_what_was_put_whatever_average_is_asked_for(kind: str) -> None:
    """The controllers hold the average."""
    name = "router_top_p" if kind == "experts" else "head_top_p"
    router = router_of(kind, MOST[kind], controller="fixed", **{name: 0.35})
    assert router.level().item() == pytest.approx(0.35)


@pytest.mark.parametrize("controller", ["quantile", "pi", "fixed", "learned"])
def test_sparsity_goes_from_everything_to_what_was_asked_for(controller: str) -> None:
    """0 keeps everything under every controller, and 1 changes nothing."""
    control = {"controller": controller, "pi_gains": (0.1, 0.05)}
    torch.manual_seed(0)
    model = Transformer(
        variant(
            ffn={"experts_per_token": 1.5, "router_top_p": 0.4, **control},
            heads={"routing": "top_p", "heads_per_token": 2, **control},
            depth={"layers_share": 0.3, "depth_threshold": 0.52, **control},
        )
    )
    names, kept = list(model.state_dict()), {}
    with torch.no_grad():
        for router in (router for kind in ("experts", "heads", "depth") for router in model.routers(kind)):
            router.weight.normal_(std=0.2)
        before = model.default_thresholds()
        for sparsity in (0.0, 0.5, 1.0):
            model.set_sparsity(sparsity)
            for seed in range(20 if controller in ("quantile", "pi") else 1):
                out = model(tiny_ids(seed, batch=8))
                model.observe(out)
            kept[sparsity] = {key: value.item() for key, value in out.usage().items()}
    assert kept[0.0] == {"experts_per_token": 4.0, "layers_per_token": 4.0, "heads_per_token": 4.0}
    for key in kept[0.0]:
        assert kept[1.0][key] < kept[0.5][key] < kept[0.0][key], key
    if controller in ("quantile", "pi"):
        halfway = {"experts_per_token": 2.75, "heads_per_token": 3.0, "layers_per_token": 2 + 2 * 0.65}
        assert kept[0.5] == pytest.approx(halfway, abs=0.3)
    else:
        for mine, theirs in zip(model.default_thresholds(), before, strict=True):
            torch.testing.assert_close(mine, theirs)
    assert list(model.state_dict()) == names, "no part of a checkpoint"


def test_a_sparsity_beyond_1_keeps_still_fewer() -> None:
    model = copy.deepcopy(tiny_model("top_p")).train()
    used_by = {}
    with torch.no_grad():
        for sparsity in (1.0, 1.15):
            model.set_sparsity(sparsity)
            for seed in range(15):
                out = model(tiny_ids(seed, batch=8))
                model.observe(out)
            used_by[sparsity] = out.usage()["experts_per_token"].item()
    assert used_by[1.0] == pytest.approx(1.6, abs=0.15)
    assert used_by[1.15] == pytest.approx(4 - 1.15 * 2.4, abs=0.15)


@pytest.mark.parametrize("level", [0.0, 1e-6])
def test_no_level_takes_the_last_expert_or_the_least_heads_away(level: float) -> None:
    for kind in ("experts", "heads", "adaptive"):
        routes = router_of(kind)(next(stream()), torch.tensor(level))
        assert (used(routes) == LEAST[kind]).all(), kind
        weights = routes.routing_weights if kind == "experts" else routes.weights
        assert weights.isfinite().all(), kind


@pytest.mark.parametrize("level", [1.0, 1.5])
def test_a_level_of_1_or_more_keeps_everything_there_is_to_keep(level: float) -> None:
    for kind in ("experts", "heads", "adaptive"):
        assert (used(router_of(kind)(next(stream()), torch.tensor(level))) == MOST[kind]).all(), kind
