"""A fault of a model ends in a message of ONNX Runtime that says what was found and expected, never in a crash."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.kernels import LIBRARY

from adaptive_lm.runtime.ops.layout import pack

if not LIBRARY.is_file():
    pytest.skip(f"{LIBRARY.name} is not built: no C++ compiler at installation", allow_module_level=True)

from support.one_operator import INPUTS, Operator, run

Array = NDArray[Any]
TOKENS, DIM, VOCAB, EXPERTS, HIDDEN = 4, 40, 70, 3, 20
FLOAT, BOOL = np.float32, np.bool_


def packed(outputs: int, inputs: int, count: int = 1) -> Array:
    return pack(np.ones((count, outputs, inputs), FLOAT), "int8")


def ones(*shape: int) -> Array:
    return np.ones(shape, FLOAT)


VALID: dict[str, tuple[dict[str, Array], dict[str, Any]]] = {
    "Embedding": (
        {"ids": np.zeros((2, 2), np.int64), "table": packed(VOCAB, DIM)},
        {"dim": DIM, "vocab": VOCAB, "precision": 2},
    ),
    "DepthRouter": (
        {
            "x": ones(TOKENS, DIM),
            "alive": np.ones((TOKENS, 1), BOOL),
            "depth_threshold": ones(2, 2),
            "weight": ones(DIM),
            "bias": ones(1),
            "per_token_weight": ones(DIM),
            "per_token_bias": ones(1),
        },
        {"layer": 1, "eps": 1e-5, "reach": 1.0},
    ),
    "FeedForward": (
        {
            "h": ones(TOKENS, DIM),
            "x": ones(TOKENS, DIM),
            "runs": np.ones((TOKENS, 1), BOOL),
            "gate": ones(TOKENS, 1),
            "router_top_p": ones(2, 2),
            "norm": ones(DIM),
            "router": ones(EXPERTS, DIM),
            "per_token_weight": ones(DIM),
            "per_token_bias": ones(1),
            "gate_up": packed(2 * HIDDEN, DIM, EXPERTS),
            "down": packed(DIM, HIDDEN, EXPERTS),
            "shared_gate_up": packed(2 * HIDDEN, DIM),
            "shared_down": packed(DIM, HIDDEN),
        },
        {
            "layer": 1,
            "eps": 1e-5,
            "num_experts": EXPERTS,
            "hidden": HIDDEN,
            "shared_hidden": HIDDEN,
            "routing": 1,
            "experts_per_token": 1,
            "renormalize": 1,
            "reach": 1.0,
            "precision_experts": 2,
            "precision_shared": 2,
        },
    ),
    "Exit": (
        {
            "x": ones(TOKENS, DIM),
            "alive": np.ones((TOKENS, 1), BOOL),
            "exit_layer": np.zeros((TOKENS, 1), np.int64),
            "exit_threshold": np.zeros((2, 2), FLOAT),
            "norm": ones(DIM),
            "weight": ones(DIM),
            "bias": ones(1),
            "head": packed(VOCAB, DIM),
        },
        {"layer": 1, "eps": 1e-5, "criterion": 0, "vocab": VOCAB, "precision": 2},
    ),
    "Logits": (
        {
            "x": ones(TOKENS, DIM),
            "norm": ones(DIM),
            "head": packed(VOCAB, DIM),
            "num_logits": np.array(1),
            "ids": np.zeros((2, 2), np.int64),
        },
        {"eps": 1e-5, "vocab": VOCAB, "precision": 2},
    ),
}
FREE = {("Embedding", "ids")}
"""Inputs whose shape alone is right whatever it is, if it has two dimensions."""
OPTIONAL = {
    "DepthRouter": {"alive", "per_token_weight", "per_token_bias"},
    "FeedForward": set(INPUTS["FeedForward"]) - {"h", "norm", "gate_up", "down"},
    "Exit": {"alive", "exit_layer", "weight", "bias", "head"},
}
"""Inputs without which a node is still accepted when the model is loaded."""


def cases(kind: str) -> Any:
    place = 0 if kind == "input" else 1
    named = [(name, part) for name, valid in VALID.items() for part in valid[place]]
    return pytest.mark.parametrize(("name", kind), named, ids=[f"{name}-{part}" for name, part in named])


def message(name: str, inputs: dict[str, Array], **attributes: Any) -> str:
    """Run an operator that must fail, and return its message."""
    with pytest.raises(Exception) as failure:  # ONNX Runtime has a class for each kind of status
        run(name, inputs, 2, **attributes)
    text = str(failure.value)
    assert "[ONNXRuntimeError]" in text
    return text


def test_valid_inputs_are_accepted() -> None:
    for name, (inputs, attributes) in VALID.items():
        run(name, inputs, 2, **attributes)


@cases("input")
def test_an_input_of_another_type_is_refused_when_the_model_is_loaded(name: str, input: str) -> None:
    inputs, attributes = VALID[name]
    text = message(name, inputs | {input: inputs[input].astype(np.float64)}, **attributes)
    assert "Type Error" in text


def one_more(array: Array, axis: int) -> Array:
    return np.repeat(array, [1] * (array.shape[axis] - 1) + [2], axis) if array.shape[axis] else array


MUTATIONS: dict[str, Callable[[Array], Array]] = {
    "one-more-first": lambda array: one_more(array, 0),
    "one-more-last": lambda array: one_more(array, -1),
    "one-less": lambda array: array[:-1],
    "empty": lambda array: array[:0],
    "empty-last": lambda array: array[..., :0],
    "wider": lambda array: array[..., None],
    "flat": lambda array: array.reshape(-1) if array.ndim > 1 else array.reshape(1, -1),
    "scalar": lambda array: array.reshape(-1)[0],
}


@cases("input")
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_an_input_of_another_shape_is_refused_by_name(name: str, input: str, mutation: str) -> None:
    inputs, attributes = VALID[name]
    array = inputs[input]
    other = array.reshape(1) if array.ndim == 0 else np.asarray(MUTATIONS[mutation](array))
    fits = other.ndim == 2 and (name, input) in FREE
    layers = input.endswith(("threshold", "top_p")) and other.ndim == 2 and len(other) > 1 and other.shape[1] == 2
    if fits or layers or (name == "Exit" and input in ("weight", "bias")):  # read by another criterion
        pytest.skip("this shape is right")
    text = message(name, inputs | {input: other}, **attributes)
    assert f"{name} (node a_{name}): input " in text
    assert any(word in text for word in ("has shape", "bytes, expected", "layers", "sequences", "rows"))


@cases("input")
def test_an_absent_input_is_refused_by_name_where_it_is_needed(name: str, input: str) -> None:
    inputs, attributes = VALID[name]
    fewer = {key: array for key, array in inputs.items() if key != input}
    needed = {"router", "router_top_p", "head", "shared_gate_up", "shared_down", "per_token_weight", "per_token_bias"}
    if input in OPTIONAL.get(name, ()) and input not in needed and (name, input) != ("FeedForward", "x"):
        run(name, fewer, 2, **attributes)
    elif input in OPTIONAL.get(name, ()):
        assert input in message(name, fewer, **attributes) or "the weight" in message(name, fewer, **attributes)
    else:
        message(name, fewer, **attributes)


@cases("attribute")
def test_an_attribute_that_is_absent_or_of_another_type_is_refused_by_name(name: str, attribute: str) -> None:
    inputs, attributes = VALID[name]
    fewer = {key: value for key, value in attributes.items() if key != attribute}
    assert f"attribute {attribute}, a" in message(name, inputs, **fewer)
    for value in ("1", 1.5 if isinstance(attributes[attribute], int) else 1, [1]):
        text = message(name, inputs, **fewer | {attribute: value})
        assert f"attribute {attribute}, a" in text


@cases("attribute")
@pytest.mark.parametrize("value", [-1, 2**31, 2**62, -(2**63)])
def test_an_attribute_beyond_its_limits_is_refused_by_name(name: str, attribute: str, value: int) -> None:
    inputs, attributes = VALID[name]
    number = value if isinstance(attributes[attribute], int) else float(value)
    text = message(name, inputs, **attributes | {attribute: number})
    assert f"attribute {attribute} is " in text
    assert ", expected " in text


@pytest.mark.parametrize("attribute", ["dim", "vocab", "num_experts", "hidden", "shared_hidden"])
def test_the_largest_attributes_do_not_overflow(attribute: str) -> None:
    for name, (inputs, attributes) in VALID.items():
        if attribute in attributes:
            largest = 2**16 if attribute == "num_experts" else 2**24
            assert "expected" in message(name, inputs, **attributes | {attribute: largest})


@pytest.mark.parametrize("id", [-1, VOCAB, 2**62, -(2**63)])
def test_a_token_outside_the_vocabulary_is_refused(id: int) -> None:
    inputs, attributes = VALID["Embedding"]
    text = message("Embedding", inputs | {"ids": np.array([[0, id]])}, **attributes)
    assert f"input ids holds {id}, expected 0 to {VOCAB - 1}" in text


@pytest.mark.parametrize("wanted", [-1, 3, 2**62, -(2**63)])
def test_more_logits_than_tokens_are_refused(wanted: int) -> None:
    inputs, attributes = VALID["Logits"]
    text = message("Logits", inputs | {"num_logits": np.array(wanted)}, **attributes)
    assert f"input num_logits is {wanted}, expected 0 to 2" in text


def test_routing_without_its_inputs_and_dense_routing_with_experts_are_refused() -> None:
    inputs, attributes = VALID["FeedForward"]
    assert "num_experts 3" in message("FeedForward", inputs, **attributes | {"routing": 0})
    router = {key: array for key, array in inputs.items() if key != "router"}
    assert "need the input router" in message("FeedForward", router, **attributes | {"routing": 2})


def test_a_criterion_without_its_inputs_is_refused() -> None:
    inputs, attributes = VALID["Exit"]
    few = {key: array for key, array in inputs.items() if key not in ("weight", "head")}
    assert "weight and bias" in message("Exit", few, **attributes | {"criterion": 3})
    assert "input head is missing" in message("Exit", few, **attributes)


def test_a_failed_run_leaves_the_session_usable() -> None:
    inputs, attributes = VALID["FeedForward"]
    operator = Operator("FeedForward", inputs, 2, **attributes)
    first = operator(inputs)
    with pytest.raises(Exception, match="has shape"):
        operator(inputs | {"norm": ones(DIM + 1)})
    for a, b in zip(first, operator(inputs), strict=True):
        np.testing.assert_array_equal(a, b)
