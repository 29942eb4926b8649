"""FeedForward with zero-computation experts and with ReLU routing, where a token may have no expert at all."""

import numpy as np
import pytest
from reference.routing import choose_positive, rms_norm, sigmoid
from support.cases import each
from support.operators.kernels import LIBRARY

from adaptive_lm.runtime.ops.layout import PRECISIONS, Precision

if not LIBRARY.is_file():
    pytest.skip(f"{LIBRARY.name} is not built: no C++ compiler at installation", allow_module_level=True)

from support.operators.feed_forward_layer import EPS, RELU, TOP_K, TOP_P, Layer
from support.operators.operator_formulas import Array, choose, close, normal, run_expert

DIM, HIDDEN, EXPERTS, TOKENS = 40, 24, 5, 24
ZEROS, COPIES, CONSTANTS = 1, 2, 3
CHOICES = EXPERTS + ZEROS + COPIES + CONSTANTS
each_precision = each("precision", PRECISIONS)


def with_zero_experts(precision: Precision, routing: int, renormalize: int = 1, shared: int = 0) -> Layer:
    layer = Layer(precision, routing, DIM, HIDDEN, EXPERTS, shared, tokens=TOKENS)
    layer.router = layer.inputs["router"] = normal(CHOICES, DIM, seed=21) / 4
    layer.inputs |= {"zero_mix": normal(CONSTANTS, DIM, seed=22) / 6, "zero_constants": normal(CONSTANTS, DIM, seed=23)}
    sizes = {"zeros": ZEROS, "copies": COPIES, "constants": CONSTANTS, "columns": CHOICES}
    layer.attributes |= {**sizes, "renormalize": renormalize}
    return layer


def output(layer: Layer, number: int, z: Array) -> Array:
    """Return the output of one choice for the normed input z (D,)."""
    if number < EXPERTS:
        return run_expert(layer.routed, number, z)
    if number < EXPERTS + ZEROS:
        return np.zeros_like(z)
    if number < EXPERTS + ZEROS + COPIES:
        return z
    constant = number - EXPERTS - ZEROS - COPIES
    share = sigmoid(layer.inputs["zero_mix"][constant] @ z)
    return np.asarray(share * z + (1 - share) * layer.inputs["zero_constants"][constant])


@each_precision
@each("shared", [0, 20])
@each("renormalize", [0, 1])
@each("routing", [TOP_P, TOP_K])
def test_zero_computation_experts_are_those_of_numpy(
    precision: Precision, routing: int, renormalize: int, shared: int
) -> None:
    layer = with_zero_experts(precision, routing, renormalize, shared)
    out, selected = layer.run()
    expected = []
    for h, row in zip(layer.inputs["h"], selected, strict=True):
        z, probs = rms_norm(h.astype(np.float64), EPS, layer.norm), layer.probs(h)
        chosen = choose(probs, "top_k" if routing == TOP_K else "top_p", float(np.float32(0.6)), 2)
        assert sorted(chosen) == np.flatnonzero(row).tolist()
        total = probs[chosen].sum() if renormalize else 1.0
        y = sum(probs[e] / total * output(layer, e, z) for e in chosen)
        if layer.shared is not None:
            y = y + run_expert(layer.shared, 0, z)
        expected.append(h + y)
    close(out, np.array(expected), precision)
    assert selected[:, EXPERTS:].any(0).all(), "every zero-computation expert is chosen by some token"


@each_precision
def test_a_token_that_takes_only_a_zero_keeps_its_state(precision: Precision) -> None:
    layer = with_zero_experts(precision, TOP_P)
    layer.inputs["router"] = np.zeros((CHOICES, DIM), np.float32)
    layer.inputs["router_bias"] = np.where(np.arange(CHOICES) == EXPERTS, 50, 0).astype(np.float32)
    out, selected = layer.run()
    np.testing.assert_array_equal(out, layer.inputs["h"])
    assert (np.flatnonzero(selected) % CHOICES == EXPERTS).all()
    assert selected.sum() == TOKENS


def relu_layer(precision: Precision, level: float, shared: int = 0) -> Layer:
    layer = Layer(precision, RELU, DIM, HIDDEN, EXPERTS, shared, tokens=60)
    layer.attributes["renormalize"] = 0
    layer.inputs["router_top_p"] = np.full((2, 1), level, np.float32)
    layer.inputs["router_bias"] = np.full(EXPERTS, -0.6, np.float32)
    return layer


@each_precision
@each("shared", [0, 20])
@each("level", [1.0, 0.7])
def test_experts_of_positive_gate_run_and_a_token_may_have_none(
    precision: Precision, level: float, shared: int
) -> None:
    layer = relu_layer(precision, level, shared)
    out, selected = layer.run()
    expected = []
    for h, row in zip(layer.inputs["h"], selected, strict=True):
        z = rms_norm(h.astype(np.float64), EPS, layer.norm)
        gates = layer.router @ z - np.float32(0.6)
        chosen = choose_positive(gates, float(np.float32(level))).chosen
        assert sorted(chosen) == np.flatnonzero(row).tolist()
        y = sum((gates[e] * run_expert(layer.routed, e, z) for e in chosen), np.zeros(DIM))
        if layer.shared is not None:
            y = y + run_expert(layer.shared, 0, z)
        expected.append(h + y)
    close(out, np.array(expected), precision)
    assert set(selected.sum(1)) >= {0, 1, 2}


def test_no_token_of_a_pass_may_have_an_expert() -> None:
    layer = relu_layer("int8", 1.0)
    layer.inputs["router_bias"] = np.full(EXPERTS, -1e3, np.float32)
    out, selected = layer.run()
    assert not selected.any()
    np.testing.assert_array_equal(out, layer.inputs["h"])


def test_a_gate_that_is_not_a_number_selects_all_experts() -> None:
    layer = relu_layer("fp32", 1.0)
    layer.inputs["h"][3, 0] = np.nan
    out, selected = layer.run()
    assert selected[3].all()
    assert np.isnan(out[3]).any()
    assert not np.isnan(np.delete(out, 3, 0)).any()


@each_precision
@each("kind", ["zero", "relu"])
def test_a_token_has_the_same_bits_alone_and_with_others(kind: str, precision: Precision) -> None:
    layer = with_zero_experts(precision, TOP_P, shared=20) if kind == "zero" else relu_layer(precision, 0.8)
    out, selected = layer.run()
    for token in range(TOKENS):
        own, chosen = layer.run(h=layer.inputs["h"][token : token + 1])
        np.testing.assert_array_equal(own[0], out[token])
        np.testing.assert_array_equal(chosen[0], selected[token])


def test_constants_need_their_weights() -> None:
    layer = with_zero_experts("fp32", TOP_P)
    del layer.inputs["zero_mix"]
    with pytest.raises(Exception, match="constants need the inputs zero_mix and zero_constants"):
        layer.run()
