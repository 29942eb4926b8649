"""The operator FeedForward against plain numpy; rows, threads and neighbours do not change a bit of a result."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from reference.routing import rms_norm, softmax
from support.cases import each
from support.operators.kernels import LIBRARY, open_library, tables

from adaptive_lm.runtime.ops.layout import PRECISIONS, Precision, pack, packed_bytes

if not LIBRARY.is_file():
    pytest.skip(f"{LIBRARY.name} is not built: no C++ compiler at installation", allow_module_level=True)

from support.graphs.one_operator import Operator, bytes_read, rows, run
from support.operators.feed_forward_layer import DENSE, EPS, TOP_K, TOP_P, Layer
from support.operators.operator_formulas import Array, choose, close, normal, run_expert, shifted

BY_ROW = ("h", "x", "runs", "gate")
each_precision = each("precision", PRECISIONS)


@each_precision
@each("routing", [DENSE, TOP_P, TOP_K])
@each(("dim", "hidden", "shared"), [(40, 72, 0), (64, 64, 50), (33, 1, 7), (1, 5, 0)])
def test_a_feed_forward_is_that_of_numpy(
    precision: Precision, routing: int, dim: int, hidden: int, shared: int
) -> None:
    layer = Layer(precision, routing, dim, hidden, experts=1 if routing == DENSE else 6, shared=shared)
    out, selected = layer.run()
    expected = []
    for h, row in zip(layer.inputs["h"], selected, strict=True):
        chosen = [0] if routing == DENSE else choose(layer.probs(h), "top_k" if routing == TOP_K else "top_p", 0.6, 2)
        assert sorted(chosen) == np.flatnonzero(row).tolist()
        expected.append(layer.expected(h, chosen))
    close(out, np.array(expected), precision)


@each("parallel", [False, True])
@each("kind", ["rms", "layer"])
@each("place", ["pre", "post", "sandwich"])
def test_norms_stand_before_the_experts_or_after_their_sum(place: str, kind: str, parallel: bool) -> None:
    """Router and experts read the same state. `h` is added last; parallel parts read the input of the layer, x."""
    layer, dim = Layer("fp32", TOP_K, 40, 72, experts=6, shared=50), 40
    layer.attributes["parallel"] = int(parallel)
    x, h = normal(5, dim, seed=9), layer.inputs["h"]
    norms = {"norm": 1 + normal(dim, seed=11) / 4, "post_norm": 1 + normal(dim, seed=12) / 4}
    biases = {"norm_bias": normal(dim, seed=13) / 4, "post_norm_bias": normal(dim, seed=14) / 4}
    absent = {"pre": "post_norm", "post": "norm", "sandwich": "-"}[place]
    given = {key: value for key, value in norms.items() if key != absent}
    if kind == "layer":
        given |= {key: value for key, value in biases.items() if key.removesuffix("_bias") != absent}
    layer.inputs = {key: value for key, value in layer.inputs.items() if key != "norm"} | given
    out, selected = layer.run(**({"x": x} if parallel else {}))

    def normed(state: Array, name: str) -> Array:
        if name not in given:
            return state
        centred = state - state.mean() if kind == "layer" else state
        return np.asarray(rms_norm(centred, EPS, given[name]) + given.get(f"{name}_bias", 0.0))

    expected = []
    assert layer.shared is not None
    for own, state, row in zip(h.astype(np.float64), (x if parallel else h).astype(np.float64), selected, strict=True):
        z = normed(state, "norm")
        probs = softmax(layer.router @ z)
        chosen = choose(probs, "top_k", 0.0, 2)
        assert sorted(chosen) == np.flatnonzero(row).tolist()
        update = sum(probs[e] / probs[chosen].sum() * run_expert(layer.routed, e, z) for e in chosen)
        expected.append(own + normed(update + run_expert(layer.shared, 0, z), "post_norm"))
    close(out, np.array(expected), "fp32")


def test_routing_weights_are_those_of_the_softmax_without_renormalisation() -> None:
    layer = Layer("fp32", TOP_K, 40, 72, experts=6)
    layer.attributes["renormalize"] = 0
    out, selected = layer.run()
    expected = [
        layer.expected(h, np.flatnonzero(row).tolist()) for h, row in zip(layer.inputs["h"], selected, strict=True)
    ]
    close(out, np.array(expected), "fp32")


def test_parts_may_differ_in_precision() -> None:
    layer = Layer("fp32", TOP_K, 40, 72, experts=3, shared=50)
    assert layer.shared is not None
    layer.shared = layer.shared._replace(precision="int8")
    layer.inputs["shared_gate_up"] = pack(layer.shared.gate_up, "int8")
    layer.inputs["shared_down"] = pack(layer.shared.down, "int8")
    layer.attributes["precision_shared"] = 2
    out, selected = layer.run()
    expected = [
        layer.expected(h, np.flatnonzero(row).tolist()) for h, row in zip(layer.inputs["h"], selected, strict=True)
    ]
    close(out, np.array(expected), "int8")


def test_each_token_moves_the_threshold_of_its_experts() -> None:
    layer, reach = Layer("fp32", TOP_P, 40, 8, experts=9, tokens=30), 2.0
    shift = {"per_token_weight": normal(40, seed=8) / 6, "per_token_bias": np.array([0.3], np.float32)}
    layer.attributes["reach"] = reach
    _, selected = layer.run(**shift)
    numbers = set()
    for h, row in zip(layer.inputs["h"], selected, strict=True):
        z = rms_norm(h.astype(np.float64), EPS, layer.norm)
        limit = shifted(float(np.float32(0.6)), shift["per_token_weight"] @ z + shift["per_token_bias"][0], reach)
        assert sorted(choose(layer.probs(h), "top_p", limit, 0)) == np.flatnonzero(row).tolist()
        numbers.add(row.sum())
    assert len(numbers) > 2


def test_a_level_of_1_selects_all_experts_and_a_level_of_0_the_first() -> None:
    layer = Layer("fp32", TOP_P, 40, 8, experts=9)
    layer.inputs["router"][3] *= 100  # so sure that float32 rounds the mass before the others to 1
    _, everything = layer.run(router_top_p=np.ones((2, 1), np.float32))
    assert everything.all()
    _, first = layer.run(router_top_p=np.zeros((2, 1), np.float32))
    assert (first.sum(1) == 1).all()


def test_equal_probabilities_are_taken_in_order_of_expert() -> None:
    layer = Layer("fp32", TOP_K, 40, 8, experts=7)
    layer.attributes["experts_per_token"] = 3
    _, selected = layer.run(router=np.zeros((7, 40), np.float32))
    assert (selected == [[True] * 3 + [False] * 4]).all()


def test_nan_selects_all_experts_and_reaches_the_output() -> None:
    layer = Layer("fp32", TOP_P, 40, 8, experts=7)
    layer.inputs["h"][2, 3] = np.nan
    out, selected = layer.run()
    assert selected[2].all()
    assert np.isnan(out[2]).all()
    assert not np.isnan(np.delete(out, 2, 0)).any()


def test_a_skipped_token_keeps_its_state_and_the_gate_scales_the_update_of_the_others() -> None:
    layer = Layer("fp32", TOP_P, 40, 72, experts=6, shared=50)
    plain, selected = layer.run()
    x, gate = normal(5, 40, seed=9), np.abs(normal(5, 1, seed=10))
    runs = np.array([[1], [0], [1], [1], [0]], bool)
    out, chosen = layer.run(x=x, gate=gate, runs=runs)
    np.testing.assert_array_equal(out[~runs[:, 0]], x[~runs[:, 0]])
    np.testing.assert_array_equal(out[runs[:, 0]], (x + gate * (plain - x))[runs[:, 0]])
    np.testing.assert_array_equal(chosen, selected & runs)
    without_x, _ = layer.run(runs=runs)
    np.testing.assert_array_equal(without_x, np.where(runs, plain, layer.inputs["h"]))


@pytest.mark.parametrize("tokens", [0, 3])
def test_no_token_is_a_result_like_any_other(tokens: int) -> None:
    layer = Layer("int8", TOP_P, 40, 72, experts=6, shared=50, tokens=tokens)
    out, selected = layer.run(runs=np.zeros((tokens, 1), bool))
    np.testing.assert_array_equal(out, layer.inputs["h"])
    assert selected.shape == (tokens, 6)
    assert not selected.any()


@each_precision
@each(("experts", "tokens"), [(1, 3), (300, 3), (4, 300)])
def test_rows_alone_give_the_bits_of_rows_together(precision: Precision, experts: int, tokens: int) -> None:
    layer = Layer(precision, TOP_P, 40, 33, experts, shared=20, tokens=tokens)
    runs = np.arange(tokens)[:, None] % 3 != 2
    inputs = layer.inputs | {"runs": runs, "x": normal(tokens, 40, seed=9), "gate": normal(tokens, 1, seed=8)}
    together = Operator("FeedForward", inputs, **layer.attributes)
    out, selected = together(inputs)
    for n in [*range(min(tokens, 8)), tokens - 1]:
        one_out, one_selected = together(rows(inputs, BY_ROW, slice(n, n + 1)))
        np.testing.assert_array_equal(one_out[0], out[n])
        np.testing.assert_array_equal(one_selected[0], selected[n])
    assert out[runs[:, 0]].any()


@each_precision
@each("tokens", [1, 3, 70])
def test_two_threads_give_the_bits_of_one(precision: Precision, tokens: int) -> None:
    layer = Layer(precision, TOP_P, 256, 500, experts=4, shared=256, tokens=tokens)
    (one, one_selected), (two, two_selected) = layer.run(threads=1), layer.run(threads=2)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one_selected, two_selected)


def test_several_runs_of_one_session_at_once_do_not_meet() -> None:
    layer = Layer("int8", TOP_P, 128, 200, experts=4, shared=64, tokens=400)
    operator = Operator("FeedForward", layer.inputs, 2, **layer.attributes)
    batches = [rows(layer.inputs, BY_ROW, slice(0, n)) for n in (300, 170, 400, 230)] * 16
    expected = [operator(batch)[0] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for out, alone in zip(pool.map(lambda batch: operator(batch)[0], batches), expected, strict=True):
            np.testing.assert_array_equal(out, alone)


def test_every_instruction_set_gives_the_same_bits() -> None:
    code = f"""
import hashlib, runpy
test = runpy.run_path({__file__!r})
for precision in test["PRECISIONS"]:
    for part in test["Layer"](precision, test["TOP_P"], 72, 100, experts=5, shared=33, tokens=9).run():
        print(hashlib.sha256(part.tobytes()).hexdigest())
"""
    results = {}
    for table in tables(open_library()):
        environment = os.environ | {"ADAPTIVE_KERNEL": table.name, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        results[table.name] = done.stdout.split()
    assert len(results["plain"]) == 2 * len(PRECISIONS)
    assert all(result == results["plain"] for result in results.values()), results


@each_precision
def test_experts_that_are_not_chosen_are_not_read(precision: Precision) -> None:
    layer = Layer(precision, TOP_K, 64, 96, experts=8, tokens=1)
    one = packed_bytes(precision, 192, 64) + packed_bytes(precision, 64, 96)
    for count in (1, 2, 5, 8):
        before = bytes_read()
        run("FeedForward", layer.inputs, **layer.attributes | {"experts_per_token": count})
        assert bytes_read() - before == count * one
    before = bytes_read()
    layer.run(runs=np.zeros((1, 1), bool))
    assert bytes_read() == before


def test_the_candidates_of_many_experts_are_those_of_highest_score() -> None:
    """300 experts, 5 candidates: those of highest score, in each token's own order."""
    layer = Layer("fp32", TOP_P, 40, 8, experts=300)
    layer.attributes |= {"most_experts": 5}
    ratio = np.zeros((2, 1), np.float32)
    out, selected = layer.run(router_top_p=np.ones((2, 1), np.float32), router_ratio=ratio)
    for h, row, own in zip(layer.inputs["h"], selected, out, strict=True):
        chosen = np.flatnonzero(row).tolist()
        assert chosen == sorted(np.argsort(-layer.probs(h), kind="stable")[:5].tolist())
        close(own, layer.expected(h, chosen), "fp32")


def test_nan_selects_every_expert_of_a_mixture_with_candidates_too() -> None:
    layer = Layer("fp32", TOP_P, 40, 8, experts=6)
    layer.attributes |= {"most_experts": 2}
    layer.inputs["h"][1] = np.nan
    _, selected = layer.run(router_ratio=np.zeros((2, 1), np.float32))
    assert selected[1].all()
    assert (selected[[0, 2, 3, 4]].sum(-1) <= 2).all()
