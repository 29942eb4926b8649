"""The choice of heads and their weights. N tokens, D width, H heads, S of them shared, R = H - S routed.

That torch decides as the plain model is asked in test_transformer.py; how averages are held in test_thresholds.py.
"""

import copy
from typing import Any

import pytest
import torch
from support.models import (
    CONFIGS,
    ROUTES_HEADS,
    busy_thresholds,
    decisions,
    even_thresholds,
    tiny_ids,
    tiny_model,
    variant,
)
from torch import Tensor

from adaptive_lm.train.model.attention.heads import HeadRouter

N, D, H = 64, 32, 6


def router_of(**heads: Any) -> HeadRouter:
    router = HeadRouter(variant(heads=heads, num_heads=H, num_kv_heads=3, head_dim=8))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in router.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return router


def tokens() -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ROUTES_HEADS)
def test_a_head_that_was_not_chosen_adds_nothing_to_its_token(name: str) -> None:
    """A head not chosen has no effect, neither its query nor its output; every chosen head has."""
    model = copy.deepcopy(tiny_model(name))
    attention = next(block.attention for block in model.blocks() if block.attention is not None)
    W = model.config.resolved_head_dim
    x = torch.randn(1, 9, model.config.dim, generator=torch.Generator().manual_seed(0))
    arguments = (model.rotary[0](9) if len(model.rotary) else None, None, None, torch.tensor(0.6))
    with torch.no_grad():
        before = attention(x, *arguments)
        selected = before.heads.selected_heads
        assert torch.equal(before.heads.weights != 0, selected)
        for head in range(model.config.num_heads):
            changed = copy.deepcopy(attention)
            changed.o.weight[:, head * W : (head + 1) * W] += 1
            moved = (changed(x, *arguments).out - before.out)[0].abs().amax(-1) > 1e-6
            assert torch.equal(moved, selected[:, head]), head


@pytest.mark.parametrize("k", [3, 5, 6])
def test_top_k_takes_the_same_number_of_heads_for_every_token(k: int) -> None:
    routes = router_of(routing="top_k", shared_heads=2, heads_per_token=k)(tokens(), torch.tensor(1.0))
    assert (routes.selected_heads.sum(-1) == k).all()
    assert routes.selected_heads[:, :2].all()
    best = routes.router_probs.topk(k - 2).indices
    assert routes.selected_heads[:, 2:].gather(1, best).all()


@pytest.mark.parametrize("level", [1e-6, 0.3, 0.5, 0.8, 0.999, 1.0])
def test_the_number_of_heads_stays_between_its_bounds_and_rises_with_the_level(level: float) -> None:
    for heads, least, most in (
        ({"routing": "top_p", "shared_heads": 2, "heads_per_token": 4}, 3, 6),
        ({"routing": "top_p", "heads_per_token": 4, "per_token": True}, 1, 6),
        ({"routing": "adaptive", "least_heads": 2, "most_heads": 5, "heads_per_token": 3}, 2, 5),
        ({"routing": "adaptive", "least_heads": 3, "most_heads": 3, "heads_per_token": 3}, 3, 3),
    ):
        router = router_of(**heads)
        counts = router(tokens(), torch.tensor(level)).selected_heads.sum(-1)
        assert ((least <= counts) & (counts <= most)).all(), heads
        more = router(tokens(), torch.tensor(level * 1.2)).selected_heads.sum(-1)
        assert (more >= counts).all(), heads


def test_a_more_complex_token_takes_more_heads() -> None:
    """Its complexity is a number of its own, and whichever heads are best for it come first."""
    router = router_of(routing="adaptive", heads_per_token=3)
    routes = router(tokens(), torch.tensor(0.5))
    complexity = router.per_token(tokens()).flatten()
    counts = routes.selected_heads.sum(-1)[complexity.argsort()]
    assert torch.equal(counts, counts.sort().values)
    assert counts[0] < counts[-1]
    chosen = torch.where(routes.selected_heads, routes.router_probs, 1.0)
    refused = torch.where(routes.selected_heads, 0.0, routes.router_probs)
    assert (chosen.amin(-1) >= refused.amax(-1)).all()


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_weights_of_the_heads_follow_the_formula_of_the_paper(shared: int) -> None:
    """MoH eq. 5-6 in the scaling of its code: two softmaxes, balanced by a third that is doubled."""
    router = router_of(routing="top_p", shared_heads=shared, heads_per_token=4.5)
    routes = router(tokens(), torch.tensor(0.6))
    for n in range(N):
        logits = router.weight @ tokens()[n]
        kept = routes.selected_heads[n, shared:]
        P = logits[shared:].softmax(-1) * kept
        expected = (4.5 - shared) * P / P.sum()
        if shared:
            of_shared, of_routed = 2 * (router.balance @ tokens()[n]).softmax(-1)
            expected = torch.cat([of_shared * shared * logits[:shared].softmax(-1), of_routed * expected])
        torch.testing.assert_close(routes.weights[n], expected, rtol=0, atol=1e-5)


def test_a_weight_does_not_jump_as_another_head_joins() -> None:
    """The scale is the wanted average, not the number chosen: a head of low probability changes little."""
    router = router_of(routing="top_p", heads_per_token=4)
    x = tokens()[:1]
    levels = torch.linspace(0.05, 0.9999, 400)
    weights = torch.stack([router(x, level).weights[0] for level in levels])
    counts = (weights > 0).sum(-1)
    assert len(counts.unique()) > 3
    order = router(x, torch.tensor(1.0)).router_probs[0].argsort(descending=True)
    for count in counts.unique().tolist()[1:]:
        joined = counts.tolist().index(count)
        before, after, others = weights[joined - 1], weights[joined], order[: count - 1]
        share = after[order[count - 1]] / 4  # the new head takes the same share from each of the others
        torch.testing.assert_close(after[others], before[others] * (1 - share), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ROUTES_HEADS)
def test_heads_that_share_keys_are_chosen_each_by_itself(name: str) -> None:
    config = CONFIGS[name]
    with torch.no_grad():
        found = decisions(tiny_model(name)(tiny_ids(), busy_thresholds(config)))
    selected = found["selected_heads"][found["layers_run"]]  # (n, H)
    groups = selected.view(len(selected), config.num_kv_heads, -1)
    assert (groups.any(-1) & ~groups.all(-1)).any()


@pytest.mark.parametrize("name", ["adaptive_per_token", "everything_none", "everything_project"])
def test_a_token_that_skips_a_layer_chooses_no_heads_in_it(name: str) -> None:
    model = tiny_model(name)
    with torch.no_grad():
        found = decisions(model(tiny_ids(), busy_thresholds(model.config)))
    assert torch.equal(found["selected_heads"].any(-1), found["layers_run"])
    assert not found["layers_run"].all()


def test_usage_tells_heads_per_token_and_layer_run() -> None:
    model = tiny_model("adaptive_per_token")
    counted = torch.zeros(2, 17, dtype=torch.bool)
    counted[0, 3:] = True
    with torch.no_grad():
        out = model(tiny_ids(), busy_thresholds(model.config))
    found = decisions(out)
    expected = found["selected_heads"][:, counted].sum() / found["layers_run"][:, counted].sum()
    torch.testing.assert_close(out.usage(counted)["heads_per_token"], expected)
    assert 1 < expected < 4
    with torch.no_grad():
        assert "heads_per_token" not in tiny_model("top_p")(tiny_ids(), even_thresholds(4)).usage()
