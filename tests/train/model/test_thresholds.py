"""How experts, heads and depth hold what was asked for: by controllers, by hand, by learning, and for each token.

N tokens, D width, E experts, H heads.
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_ids, tiny_model, variant
from torch import Tensor

from adaptive_lm.train.model import DepthConfig, FFNConfig, LossConfig, Transformer, training_loss
from adaptive_lm.train.model.depth import DepthRouter
from adaptive_lm.train.model.heads import HeadRouter
from adaptive_lm.train.model.losses import threshold_loss
from adaptive_lm.train.model.router import Router
from adaptive_lm.train.model.threshold import Thresholded, keep_gradient

N, D, E, H = 512, 16, 8, 6
ALL = torch.ones(N, dtype=torch.bool)
WANTED = {"experts": 1.7, "heads": 3.5, "adaptive": 3.0, "depth": 0.6}
LEAST = {"experts": 1, "heads": 3, "adaptive": 2, "depth": 0}
MOST = {"experts": E, "heads": H, "adaptive": 5, "depth": 1}
KINDS = list(WANTED)


def router_of(kind: str, wanted: float | None = None, **control: Any) -> Thresholded:
    """A router of each kind with seeded weights."""
    wanted = WANTED[kind] if wanted is None else wanted
    heads = {"num_heads": H, "head_dim": 8, "num_kv_heads": 2, "dim": D}
    router: Thresholded
    if kind == "experts":
        router = Router(D, FFNConfig(num_experts=E, experts_per_token=wanted, **control))
    elif kind == "heads":
        fields = {"routing": "top_p", "shared_heads": 2, "heads_per_token": wanted, **control}
        router = HeadRouter(variant(heads=fields, **heads))
    elif kind == "adaptive":
        fields = {"routing": "adaptive", "least_heads": 2, "most_heads": 5, "heads_per_token": wanted, **control}
        router = HeadRouter(variant(heads=fields, **heads))
    else:
        router = DepthRouter(D, DepthConfig(layers_share=wanted, **control), 1e-5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in router.named_parameters():
            if not name.endswith("level_logit"):
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return router


def used(routes: Any) -> Tensor:
    """Units of each token (N,): experts, heads or layers."""
    if hasattr(routes, "passes"):
        return routes.passes.float()
    chosen = routes.selected_heads if hasattr(routes, "selected_heads") else routes.selected_experts
    return chosen.sum(-1).float()


def stream(seed: int = 1) -> Any:
    """Batches of (N, D) without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(N, D, generator=generator)


@pytest.mark.parametrize("per_token", [False, True], ids=["level", "per_token"])
@pytest.mark.parametrize("controller", ["quantile", "pi"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_controller_holds_the_average_while_the_scores_drift(kind: str, controller: str, per_token: bool) -> None:
    """T35. The router's weights double on the way, and the average is held before, meanwhile and after."""
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
def test_the_whole_range_can_be_asked_for(kind: str, wanted: str | float) -> None:
    """A layer that always runs has no router, and none never runs."""
    least, most = LEAST[kind], MOST[kind]
    asked = {"least": least, "most": most}[wanted] if isinstance(wanted, str) else least + (most - least) * wanted
    router = router_of(kind, asked)
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
        for seed in range(150):
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
    assert np.mean(averages[100:]) == pytest.approx(wanted, abs=0.04 * wanted)
    assert np.ptp(np.mean(averages[100:], 0)) > 0.1, "the layers differ, so their mean is not that of each"
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
    """The average is the controllers' business."""
    name = "router_top_p" if kind == "experts" else "head_top_p"
    router = router_of(kind, MOST[kind], controller="fixed", **{name: 0.35})
    assert router.level().item() == pytest.approx(0.35)


@pytest.mark.parametrize(
    ("kind", "per_token", "controller"),
    [
        (kind, per_token, controller)
        for kind in KINDS
        for per_token in (False, True)
        for controller in ("fixed", "learned")
        if controller == "learned" or per_token or kind == "adaptive"
    ],
)
def test_what_is_learned_of_a_threshold_moves_towards_its_budget(kind: str, per_token: bool, controller: str) -> None:
    """Under its loss alone, from too much and from too little; a fixed level learns through its predictor."""
    span, distances = MOST[kind] - LEAST[kind], []
    for start in (0.1, 0.9):
        name = {"experts": "router_top_p", "depth": "depth_threshold"}.get(kind, "head_top_p")
        level = start if controller == "learned" else 0.7
        router = router_of(kind, controller=controller, per_token=per_token, per_token_least=0.0, **{name: level})
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
        factor, least = layer.heads.mass_before[:, 1], 0.0  # where a token's second rank stands
    else:
        routes, section = {
            "experts_per_token": (layer.routes, config.ffn),
            "depth_per_token": (layer.depth, config.depth),
            "heads_top_p": (layer.heads, config.heads),
        }[name]
        factor, least = routes.factor.flatten(), section.per_token_least
    assert ((least <= factor) & (factor <= 1)).all()
    assert factor.max() - factor.min() > 0.3 * (1 - least)


@pytest.mark.parametrize("controller", ["quantile", "pi", "fixed", "learned"])
def test_sparsity_goes_from_everything_to_what_was_asked_for(controller: str) -> None:
    """0 keeps everything whatever holds the threshold, and 1 is as if nothing had been said."""
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
            for seed in range(40 if controller in ("quantile", "pi") else 1):
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


def test_a_hard_decision_has_the_gradient_of_a_soft_one() -> None:
    """Straight-through: 1 or 0 forward, and backward the slope of a sigmoid around the border."""
    score, limit = torch.linspace(0, 1, 11), torch.tensor(0.5, requires_grad=True)
    kept = keep_gradient(score < limit, score, limit)
    assert kept.tolist() == pytest.approx([1.0] * 5 + [0.0] * 6, abs=1e-6)
    slopes = [torch.autograd.grad(k, limit, retain_graph=True)[0].item() for k in kept]
    assert slopes[5] == pytest.approx(2.5)
    assert all(slope > 0 for slope in slopes)
    assert slopes[:6] == sorted(slopes[:6])


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


def test_a_learned_threshold_is_part_of_the_training_loss() -> None:
    model = copy.deepcopy(tiny_model("controllers")).train()
    out = model(tiny_ids())
    _, parts = training_loss(model, out, tiny_ids(1), torch.ones(2, 17, dtype=torch.bool), LossConfig())
    assert parts["threshold_loss"] > 0
