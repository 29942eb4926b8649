"""The usage and cost of a token, compared with a slow count (S60)."""

from typing import Any

import numpy as np
import pytest
from support.graphs.state_graph import write_hybrid
from support.graphs.tiny_graph import E, L, expected, manifest_content

from adaptive_lm.runtime import Dial, Engine, Manifest, Params, load
from adaptive_lm.runtime.dial import resolve
from adaptive_lm.runtime.execution.usage.cost import Meter
from adaptive_lm.runtime.execution.usage.routes import Routes
from adaptive_lm.runtime.execution.usage.total import Total
from adaptive_lm.runtime.format.manifest import Costs

IDS = list(b"How do mountains form?")


def different_costs() -> dict[str, Any]:
    """Every cost another prime, so that no two mistakes cancel."""
    primes = iter(
        [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101] * 3
    )
    names = (
        "attention",
        "attention_per_key",
        "router",
        "expert",
        "shared_expert",
        "depth_router",
        "exit_check",
        "skipped_kv",
        "head",
        "head_per_key",
    )
    return {
        table: {"lm_head": next(primes), "layers": [{name: next(primes) for name in names} for _ in range(L)]}
        for table in ("flops", "weight_bytes")
    }


def by_hand(table: dict[str, Any], routes: Routes, t: int, *, dense: bool, num_heads: int = 2) -> float:
    """Compute the FLOPs by the formula of the manifest, written out."""
    layers = manifest_content()["model"]["layers"]
    cost = table["lm_head"]
    for layer in range(L):
        part = table["layers"][layer]
        here = dense or routes.exit_layer[t] < 0 or layer <= routes.exit_layer[t]
        keys = int(routes.positions[t]) + 1 if dense else int(routes.keys[layer, t])
        used = E if dense else int(routes.selected_experts[layer, t].sum())
        if dense or routes.layers_run[layer, t]:
            cost += part["attention"] + part["attention_per_key"] * keys + part["router"]
            cost += part["expert"] * used + part["shared_expert"]
            every = dense or routes.selected_heads is None
            heads = num_heads if every else int(routes.selected_heads[layer, t].sum())
            cost += heads * (part["head"] + part["head_per_key"] * keys)
        else:
            cost += part["skipped_kv"]
        if layers[layer]["depth_router"] and here:
            cost += part["depth_router"]
        if layers[layer]["exit"] and here and not dense and routes.exits_open[layer]:
            cost += part["exit_check"]
    return float(cost)


@pytest.mark.parametrize(("top_p", "depth", "leave"), [(0.5, 0.5, 0.6), (1.0, 0.0, 1.0), (0.2, 0.9, 0.3)])
def test_costs_are_those_of_the_contract(engine: Engine, top_p: float, depth: float, leave: float) -> None:
    costs = different_costs()
    meter = Meter(Manifest.model_validate(manifest_content() | {"costs": costs}))
    sequence = engine.session.sequence(
        resolve(engine.manifest, Dial(router_top_p=top_p, depth_threshold=depth, exit_threshold=leave)), len(IDS)
    )
    routes = sequence.prefill(IDS).routes
    spent = meter.spent(routes)
    for t in range(len(IDS)):
        for row, table in enumerate(("flops", "weight_bytes")):
            assert spent.executed[row, t] == by_hand(costs[table], routes, t, dense=False)
            assert spent.dense[row, t] == by_hand(costs[table], routes, t, dense=True)
        usage = meter.usage(routes, t)
        assert usage.executed_flops == by_hand(costs["flops"], routes, t, dense=False)
        assert usage.dense_bytes == by_hand(costs["weight_bytes"], routes, t, dense=True)


def test_costs_of_heads_and_windows_are_those_of_the_contract(rich_engine: Engine) -> None:
    """Only the heads that were chosen, only the keys inside the window; a dense pass has every head and no window."""
    costs = different_costs()
    meter = Meter(rich_engine.manifest.model_copy(update={"costs": Costs.model_validate(costs)}))
    sequence = rich_engine.session.sequence(
        resolve(rich_engine.manifest, Dial(router_top_p=0.5, depth_threshold=0.5, exit_threshold=0.6, head_top_p=0.5)),
        len(IDS),
    )
    routes = sequence.prefill(IDS).routes
    assert routes.windows is not None
    assert (routes.keys[0] == np.minimum(np.arange(len(IDS)) + 1, 8)).all()
    spent = meter.spent(routes)
    for t in range(len(IDS)):
        for row, table in enumerate(("flops", "weight_bytes")):
            assert spent.executed[row, t] == by_hand(costs[table], routes, t, dense=False, num_heads=4)
            assert spent.dense[row, t] == by_hand(costs[table], routes, t, dense=True, num_heads=4)


def test_all_of_the_model_costs_what_the_dense_pass_costs(engine: Engine) -> None:
    sequence = engine.session.sequence(
        resolve(engine.manifest, Dial(router_top_p=1, depth_threshold=0, exit_threshold=1)), len(IDS)
    )
    spent = engine.session.meter.spent(sequence.prefill(IDS).routes)
    np.testing.assert_array_equal(spent.executed, spent.dense)
    np.testing.assert_array_equal(spent.adaptive, spent.adaptive_dense)


def test_usage_names_experts_heads_layers_and_exit(engine: Engine) -> None:
    sequence = engine.session.sequence(
        resolve(engine.manifest, Dial(router_top_p=0.6, depth_threshold=0.5, exit_threshold=0.6)), len(IDS)
    )
    _, selected, run, exits = expected(IDS, 0.6, 0.5, 0.6)
    for t, token in enumerate(IDS):
        usage = sequence.step(token).usage
        assert usage.experts == tuple(tuple(np.flatnonzero(selected[layer, t]).tolist()) for layer in range(L))
        assert usage.layers_run == tuple(np.flatnonzero(run[:, t]).tolist())
        assert usage.exit_layer == (None if exits[t] < 0 else exits[t])
        assert usage.heads == tuple((0, 1) if ran else () for ran in run[:, t])
        assert usage.windows == (0, 0, 0)
        assert 0 < usage.flops_share < 1


@pytest.mark.parametrize("name", ["experts", "layers_share", "exit_threshold"])
def test_less_asked_for_is_never_more_flops(engine: Engine, name: str) -> None:
    """S62: the dial is monotone."""
    values = np.linspace(1, E, 9) if name == "experts" else np.linspace(0, 1, 9)
    shares = []
    for value in values:
        sequence = engine.session.sequence(resolve(engine.manifest, Dial(**{name: float(value)})), len(IDS))
        shares.append(engine.session.meter.spent(sequence.prefill(IDS).routes).adaptive[0].sum())
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]


@pytest.fixture(scope="module")
def hybrid_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Load a model some of whose layers have no attention, and so no heads to count."""
    folder = write_hybrid(tmp_path_factory.mktemp("hybrid") / "model", mixes=True, attention=True, skipped="none")
    return load(folder, device="cpu", threads=1)


@pytest.mark.parametrize("name", ["engine", "rich_engine", "hybrid_engine"])
def test_the_total_of_many_tokens_is_the_sum_of_their_usages(name: str, request: pytest.FixtureRequest) -> None:
    engine: Engine = request.getfixturevalue(name)
    tokens = list(engine.generate("abc", Params(max_new_tokens=9, seed=1)))
    if any(layer.exit for layer in engine.manifest.model.layers):
        closed = list(engine.generate("abc", Params(max_new_tokens=9, seed=1, exit_threshold=1)))
        tokens = [*closed, *engine.generate("abc", Params(max_new_tokens=9, seed=1, exit_threshold=0.5)), *closed]
    total = tokens[0].meter.total([token.routes for token in tokens])
    assert total.tokens == len(tokens)
    assert total.layers == sum(len(token.usage.layers_run) for token in tokens)
    assert total.experts == sum(len(used) for token in tokens for used in token.usage.experts)
    assert total.heads == sum(len(used) for token in tokens for used in token.usage.heads)
    assert total.executed_flops == pytest.approx(sum(token.usage.executed_flops for token in tokens), rel=1e-12)
    assert total.dense_flops == pytest.approx(sum(token.usage.dense_flops for token in tokens), rel=1e-12)
    assert total.executed_bytes == pytest.approx(sum(token.usage.executed_bytes for token in tokens), rel=1e-12)
    assert total.share == pytest.approx(total.executed_flops / total.dense_flops)
    assert total.means() == {
        "experts_per_token": round(total.experts / total.layers, 4),
        "heads_per_token": round(total.heads / total.layers, 4),
        "layers_per_token": round(total.layers / len(tokens), 4),
    }


def test_the_total_of_no_token_has_means_of_zero() -> None:
    assert (Total().share, set(Total().means().values())) == (0.0, {0.0})
