"""Ties: scores that equal their threshold exactly, which the graph must decide the same way."""

import copy

import pytest
import torch
from support.models import even_thresholds, judge, tiny_ids, tiny_model, variant

from adaptive_lm.train.model import FFNConfig, ModelConfig, Transformer
from adaptive_lm.train.model.routing.router import Router

TIED = variant(vocab_size=32, depth={"layers_share": 0.5, "exit_layers": (0, 2)})


def undecided(config: ModelConfig) -> Transformer:
    """Make a model whose routers give equal scores: P = 1/4, score 1/2, and 1/32 for each next token."""
    model = Transformer(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "router" in name or name == "head.weight":
                weight.zero_()
    return model


@pytest.mark.parametrize(
    ("limit", "experts"), [(0.25, 1), (0.2500001, 2), (0.5, 2), (0.75, 3), (0.7500001, 4), (1.0, 4), (1e-9, 1)]
)
def test_an_expert_is_refused_where_the_mass_before_it_reaches_the_threshold(limit: float, experts: int) -> None:
    """And of experts with equal probability the lower number comes first."""
    router = Router(8, FFNConfig(num_experts=4))
    torch.nn.init.zeros_(router.weight)
    routes = router(torch.randn(3, 8), torch.tensor(limit))
    assert routes.selected_experts.tolist() == [[expert < experts for expert in range(4)]] * 3


@pytest.mark.parametrize("limit", [0.0, 0.3, 0.6, 0.999, 1.0])
@pytest.mark.parametrize("routing", ["top_p", "top_k"])
def test_experts_are_those_of_the_ranks_kept(routing: str, limit: float) -> None:
    """Compared with a plain scatter, with many equal logits."""
    router = Router(8, FFNConfig(num_experts=16, routing=routing, experts_per_token=3))
    with torch.no_grad():
        router.weight.copy_(torch.randint(-1, 2, router.weight.shape))
    routes = router(torch.randint(-1, 2, (500, 8)).float(), torch.tensor(limit))
    ranked, expert = routes.router_probs.sort(dim=-1, descending=True, stable=True)
    kept = (routes.mass_before < limit) | (limit >= 1) if routing == "top_p" else torch.arange(16).expand(500, 16) < 3
    kept[:, 0] = True
    assert torch.equal(routes.selected_experts, torch.zeros_like(kept).scatter(-1, expert, kept))
    assert (ranked[:, 1:] == ranked[:, :-1]).any(-1).sum() > 400
    assert torch.allclose(routes.routing_weights.sum(-1), torch.ones(500))


def test_numbers_that_are_none_are_not_hidden() -> None:
    router = Router(8, FFNConfig(num_experts=4))
    with torch.no_grad():
        router.weight.fill_(float("nan"))
    routes = router(torch.randn(3, 8), torch.tensor(0.5))
    assert routes.routing_weights.isnan().all()
    assert routes.selected_experts.all()


@pytest.mark.parametrize(("depth", "runs"), [(0.5, True), (0.5000001, False), (0.0, True)])
@pytest.mark.parametrize(("leave", "exit_layer"), [(1 / 32, -1), (0.0312499, 0), (1.0, -1)])
def test_equal_to_the_threshold_runs_the_layer_and_does_not_leave(
    depth: float, runs: bool, leave: float, exit_layer: int
) -> None:
    model, ids = undecided(TIED), tiny_ids()
    layers = TIED.num_layers
    limits = even_thresholds(layers, 0.5, depth, leave)
    with torch.no_grad():
        out = model(ids, limits)
    assert (out.exit_layer == exit_layer).all()
    assert (out.routing[1].runs == (runs and exit_layer < 0)).all()
    plain = judge(model, ids, limits)
    assert (plain.exit_layer == exit_layer).all()
    assert (plain.layers_run[1] == (runs and exit_layer < 0)).all()


def test_a_margin_tells_how_close_a_decision_was() -> None:
    """The reference counts near ties by these margins."""
    model, ids = copy.deepcopy(undecided(TIED)), tiny_ids()
    plain = judge(model, ids, even_thresholds(TIED.num_layers, 0.6, 0.4, 0.5))
    assert plain.margins["expert_mass"] == pytest.approx(0.1, abs=1e-6)
    assert plain.margins["expert_rank"] == pytest.approx(0.0)
    assert plain.margins["depth"][1:3] == pytest.approx(0.1, abs=1e-6)
    assert plain.margins["exit"][[0, 2]] == pytest.approx(0.5 - 1 / 32, abs=1e-6)
    assert plain.near_ties().all()
    busy = judge(tiny_model("both_none"), ids, even_thresholds(4))
    assert not busy.near_ties().any()


@pytest.mark.parametrize("candidates", [1, 2, 4])
def test_a_router_never_uses_more_than_its_candidates_and_ties_go_to_lower_numbers(candidates: int) -> None:
    router = Router(8, FFNConfig(num_experts=4, most_experts=candidates, experts_per_token=1))
    torch.nn.init.zeros_(router.weight)
    for ratio in (None, torch.tensor(0.0), torch.tensor(1.0)):
        routes = router(torch.randn(3, 8), torch.tensor(1.0), ratio)
        assert routes.selected_experts.tolist() == [[expert < candidates for expert in range(4)]] * 3
        assert torch.allclose(routes.routing_weights.sum(-1), torch.ones(3))
