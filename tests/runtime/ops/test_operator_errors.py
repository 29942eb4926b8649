"""A fault of a model ends in a message of ONNX Runtime that says what was found and expected, never in a crash."""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from support.cases import each
from support.operators.kernels import LIBRARY, open_library

from adaptive_lm.runtime.ops.layout import pack

if not LIBRARY.is_file():
    pytest.skip(f"{LIBRARY.name} is not built: no C++ compiler at installation", allow_module_level=True)

from support.graphs.one_operator import Operator, run

Array = NDArray[Any]
TOKENS, DIM, VOCAB, EXPERTS, HIDDEN = 4, 40, 70, 3, 20
FLOAT, BOOL = np.float32, np.bool_


def packed(outputs: int, inputs: int, count: int = 1) -> Array:
    return pack(np.ones((count, outputs, inputs), FLOAT), "int8")


def ones(*shape: int) -> Array:
    return np.ones(shape, FLOAT)


HEADS, WIDTH, SLOTS, CONV, RANK = 2, 12, 3, 4, 5
INNER = HEADS * WIDTH


def mixer(kept: int, channels: int, **own: Array) -> dict[str, Array]:
    """Return the inputs that every recurrent mixer has, and then its own."""
    shared: dict[str, Array] = {
        "x": ones(TOKENS, DIM),
        "runs": np.ones((TOKENS, 1), BOOL),
        "slots": np.array([2, 0]),
        "lengths": np.zeros((2, SLOTS), np.int64),
        **{name: ones(DIM) for name in ("norm", "norm_bias", "post_norm", "post_norm_bias")},
        "past_state": ones(SLOTS, HEADS, WIDTH, WIDTH),
    }
    if kept:
        shared["past_conv"] = ones(SLOTS, channels, kept)
    return shared | {"o": packed(DIM, INNER)} | own


MIXER = {"layer": 1, "eps": 1e-5, "num_heads": HEADS, "head_dim": WIDTH, "policy": 1, "precision": 2}
VALID: dict[str, tuple[dict[str, Array], dict[str, Any]]] = {
    "Embedding": (
        {
            "ids": np.zeros((2, 2), np.int64),
            "table": packed(VOCAB, DIM),
            "positions": np.zeros((2, 2), np.int64),
            "learned_positions": ones(5, DIM),
        },
        {"scale": 2.0, "dim": DIM, "vocab": VOCAB, "precision": 2},
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
            "norm_bias": ones(DIM),
            "post_norm": ones(DIM),
            "post_norm_bias": ones(DIM),
            "router": ones(EXPERTS + 3, DIM),
            "per_token_weight": ones(DIM),
            "per_token_bias": ones(1),
            "gate_up": packed(2 * HIDDEN, DIM, EXPERTS),
            "down": packed(DIM, HIDDEN, EXPERTS),
            "shared_gate_up": packed(2 * HIDDEN, DIM),
            "shared_down": packed(DIM, HIDDEN),
            "router_ratio": ones(2, 2),
            "router_bias": ones(EXPERTS + 3),
            "selection_bias": ones(EXPERTS + 3),
            "gate_up_bias": ones(EXPERTS, 2 * HIDDEN),
            "down_bias": ones(EXPERTS, DIM),
            "shared_gate_up_bias": ones(1, 2 * HIDDEN),
            "shared_down_bias": ones(1, DIM),
            "shared_gate": ones(DIM),
            "zero_mix": ones(1, DIM),
            "zero_constants": ones(1, DIM),
        },
        {
            "layer": 1,
            "eps": 1e-5,
            "parallel": 1,
            "num_experts": EXPERTS,
            "hidden": HIDDEN,
            "shared_hidden": HIDDEN,
            "routing": 1,
            "experts_per_token": 1,
            "renormalize": 1,
            "reach": 1.0,
            "precision_experts": 2,
            "precision_shared": 2,
            "most_experts": 2,
            "score": 0,
            "activation": 0,
            "gated": 1,
            "columns": EXPERTS + 3,
            "zeros": 1,
            "copies": 1,
            "constants": 1,
        },
    ),
    "Exit": (
        {
            "x": ones(TOKENS, DIM),
            "alive": np.ones((TOKENS, 1), BOOL),
            "exit_layer": np.zeros((TOKENS, 1), np.int64),
            "exit_threshold": np.zeros((2, 2), FLOAT),
            "norm": ones(DIM),
            "norm_bias": ones(DIM),
            "weight": ones(DIM),
            "bias": ones(1),
            "head": packed(VOCAB, DIM),
        },
        {"layer": 1, "eps": 1e-5, "criterion": 0, "softcap": 5.0, "vocab": VOCAB, "precision": 2},
    ),
    "Logits": (
        {
            "x": ones(TOKENS, DIM),
            "norm": ones(DIM),
            "norm_bias": ones(DIM),
            "head": packed(VOCAB, DIM),
            "logit_rows": np.array([3, 0]),
        },
        {"eps": 1e-5, "softcap": 5.0, "vocab": VOCAB, "precision": 2},
    ),
    "RetNet": (
        mixer(
            0,
            0,
            positions=np.zeros((2, 2), np.int64),
            **{name: packed(INNER, DIM) for name in ("q", "k", "v", "gate")},
            decay=ones(HEADS),
            cos=ones(8, 5),
            sin=ones(8, 5),
        ),
        MIXER | {"rotated": 10},
    ),
    "Mamba2": (
        mixer(
            CONV - 1,
            INNER + 2 * WIDTH,
            **{"in": packed(2 * INNER + 2 * WIDTH + HEADS, DIM)},
            conv_weight=ones(CONV, INNER + 2 * WIDTH),
            conv_bias=ones(INNER + 2 * WIDTH),
            dt_bias=ones(HEADS),
            rate=ones(HEADS),
            skip=ones(HEADS),
            inner_norm=ones(INNER),
        ),
        MIXER | {"conv": CONV},
    ),
    "GatedDelta": (
        mixer(
            CONV - 1,
            3 * INNER,
            **{name: packed(INNER, DIM) for name in ("q", "k", "v", "gate")},
            conv_weight=ones(CONV, 3 * INNER),
            forget=ones(HEADS, DIM),
            write=ones(HEADS, DIM),
            dt_bias=ones(HEADS),
            rate=ones(HEADS),
            head_norm=ones(WIDTH),
        ),
        MIXER | {"conv": CONV},
    ),
    "Rwkv7": (
        mixer(
            1,
            DIM,
            shift=ones(6, DIM),
            **{name: packed(INNER, DIM) for name in ("r", "k", "v")},
            **{f"{name}_in": pack(ones(RANK, DIM), "fp32") for name in ("decay", "rate", "gate")},
            **{f"{name}_out": pack(ones(INNER, RANK), "fp32") for name in ("decay", "rate", "gate")},
            **{name: ones(INNER) for name in ("decay_bias", "rate_bias", "removal_key", "key_rate", "bonus")},
            head_norm=ones(INNER),
            head_norm_bias=ones(INNER),
        ),
        MIXER | {"rank": RANK},
    ),
}
MIXERS = ("RetNet", "Mamba2", "GatedDelta", "Rwkv7")
OPTIONAL = {
    "DepthRouter": {"alive"},
    "FeedForward": {
        *("runs", "gate", "norm_bias", "post_norm_bias", "router_bias", "selection_bias", "shared_gate"),
    },
    "Exit": {"alive", "exit_layer", "norm_bias", "weight", "bias"},
    "Logits": {"norm_bias"},
    **{name: {"runs", "norm_bias", "post_norm_bias"} for name in MIXERS},
}
"""Inputs without which these attributes still give a result."""


def cases(kind: str) -> Any:
    place = 0 if kind == "input" else 1
    named = [(name, part) for name, valid in VALID.items() for part in valid[place]]
    return each(("name", kind), named)


@cache
def valid_operator(name: str) -> Operator:
    inputs, attributes = VALID[name]
    return Operator(name, inputs, 2, **attributes)


def message(name: str, inputs: dict[str, Array], **attributes: Any) -> str:
    """Run an operator that must fail, and return its message."""
    with pytest.raises(Exception) as failure:  # ONNX Runtime has a class for each kind of status
        run(name, inputs, **attributes)
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


MUTATIONS: tuple[Callable[[Array], Array], ...] = (
    lambda array: one_more(array, 0),
    lambda array: one_more(array, -1),
    lambda array: array[:-1],
    lambda array: array[:0],
    lambda array: array[..., :0],
    lambda array: array[..., None],
    lambda array: array.reshape(-1) if array.ndim > 1 else array.reshape(1, -1),
    lambda array: array.reshape(-1)[0],
)


def fits(name: str, input: str, array: Array) -> bool:
    """Whether another shape is right, too: more tokens, layers or positions, or what this criterion does not read."""
    if name == "Exit" and input in ("weight", "bias"):
        return True
    if name in MIXERS and input == "lengths":  # more layers
        return array.ndim == 2 and len(array) > 1 and array.shape[1] == SLOTS
    if name in MIXERS and input == "slots":  # rows that the tokens can be divided into, each in a slot
        return array.ndim == 1 and len(array) in (1, 2, 4)
    if name == "Logits" and input in ("x", "logit_rows"):
        return array.shape == (TOKENS + 1, DIM) if input == "x" else array.ndim == 1
    levels = input.endswith(("threshold", "top_p", "ratio"))
    layers = levels and array.ndim == 2 and len(array) > 1 and array.shape[1] == 2
    return layers or (input == "learned_positions" and array.ndim == 2 and len(array) > 0 and array.shape[1] == DIM)


@cases("input")
def test_an_input_of_another_shape_is_refused_by_name(name: str, input: str) -> None:
    inputs, operator = VALID[name][0], valid_operator(name)
    array = inputs[input]
    others = [array.reshape(1)] if array.ndim == 0 else [mutation(array) for mutation in MUTATIONS]
    words = ["has shape", "bytes, expected", "layers", "sequences", "rows"]
    words += ["slots is 2 for row 0"] if input == "lengths" else ["does not match input cos"]
    for other in map(np.asarray, others):
        if fits(name, input, other):
            operator(inputs | {input: other})
            continue
        with pytest.raises(Exception, match=rf"{name} \(node a_{name}\): input ") as failure:
            operator(inputs | {input: other})
        text = str(failure.value)
        assert any(word in text for word in words), text


@cases("input")
def test_an_absent_input_is_refused_by_name_where_it_is_needed(name: str, input: str) -> None:
    inputs, attributes = VALID[name]
    fewer = {key: array for key, array in inputs.items() if key != input}
    if input in OPTIONAL.get(name, ()):
        run(name, fewer, 2, **attributes)
        return
    text = message(name, fewer, **attributes)
    assert name in text
    # ONNX Runtime's own check of a node names no input
    assert input.removesuffix("_bias").removesuffix("_weight") in text or "Input" in text or "input" in text


@cases("attribute")
def test_an_attribute_that_is_absent_or_of_another_type_is_refused_by_name(name: str, attribute: str) -> None:
    inputs, attributes = VALID[name]
    fewer = {key: value for key, value in attributes.items() if key != attribute}
    assert f"attribute {attribute}, a" in message(name, inputs, **fewer)
    for value in ("1", 1.5 if isinstance(attributes[attribute], int) else 1, [1]):
        text = message(name, inputs, **fewer | {attribute: value})
        assert f"attribute {attribute}, a" in text


@cases("attribute")
@each("value", [-1, 2**31, 2**62, -(2**63)])
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


@pytest.mark.parametrize("place", [-1, 5, 2**62, -(2**63)])
def test_a_position_without_a_learned_vector_is_refused(place: int) -> None:
    inputs, attributes = VALID["Embedding"]
    text = message("Embedding", inputs | {"positions": np.array([[0, 0], [place, 0]])}, **attributes)
    assert f"input positions holds {place}, but learned_positions has 5 rows" in text
    fewer = {key: array for key, array in inputs.items() if key != "positions"}
    assert "positions and learned_positions come together" in message("Embedding", fewer, **attributes)


@pytest.mark.parametrize("norm", ["norm", "post_norm"])
def test_a_bias_of_a_norm_without_its_weight_is_refused(norm: str) -> None:
    inputs, attributes = VALID["FeedForward"]
    fewer = {key: array for key, array in inputs.items() if key != norm}
    text = message("FeedForward", fewer, **attributes)
    assert f"input {norm}_bias is given, but the weight of the norm is not" in text


def test_parallel_parts_need_the_input_of_the_layer() -> None:
    inputs, attributes = VALID["FeedForward"]
    fewer = {key: array for key, array in inputs.items() if key not in ("x", "gate")}
    assert "parallel = 1, x is needed" in message("FeedForward", fewer, **attributes)


@pytest.mark.parametrize("wanted", [-1, TOKENS, 2**62, -(2**63)])
def test_logits_of_a_token_that_is_not_there_are_refused(wanted: int) -> None:
    inputs, attributes = VALID["Logits"]
    text = message("Logits", inputs | {"logit_rows": np.array([0, wanted])}, **attributes)
    assert f"input logit_rows holds {wanted}, expected 0 to {TOKENS - 1}" in text


def test_routing_without_its_inputs_and_dense_routing_with_experts_are_refused() -> None:
    inputs, attributes = VALID["FeedForward"]
    assert "num_experts 3" in message("FeedForward", inputs, **attributes | {"routing": 0, "most_experts": 0})
    assert "most_experts is 2, expected 0 to 0" in message("FeedForward", inputs, **attributes | {"routing": 2})
    attributes = attributes | {"most_experts": 0}
    router = {key: array for key, array in inputs.items() if key != "router"}
    assert "need the input router" in message("FeedForward", router, **attributes | {"routing": 2})


def test_a_criterion_without_its_inputs_is_refused() -> None:
    inputs, attributes = VALID["Exit"]
    few = {key: array for key, array in inputs.items() if key not in ("weight", "head")}
    assert "weight and bias" in message("Exit", few, **attributes | {"criterion": 3})
    assert "input head is missing" in message("Exit", few, **attributes)


def test_a_mixer_without_a_convolution_has_no_inputs_to_keep() -> None:
    inputs, attributes = VALID["RetNet"]
    text = message("RetNet", inputs | {"past_conv": ones(SLOTS, 3, 1)}, **attributes)
    assert "input past_conv has shape" in text
    text = message("RetNet", inputs | {"past_conv": ones(SLOTS, 0, 0)}, **attributes)
    assert "input past_conv is given, but the mixer looks back at no inputs" in text
    inputs, attributes = VALID["Mamba2"]
    assert "past_conv has shape" in message("Mamba2", inputs, **attributes | {"conv": 3})
    without = {key: array for key, array in inputs.items() if key != "past_conv"}
    assert "conv_weight has shape" in message("Mamba2", without, **attributes | {"conv": 1})
    fewer = {key: array for key, array in inputs.items() if key not in ("past_conv", "conv_weight", "conv_bias")}
    run("Mamba2", fewer, **attributes | {"conv": 1})


def test_a_state_without_an_output_that_replaces_it_is_refused() -> None:
    inputs, attributes = VALID["Mamba2"]
    nodes = Operator("Mamba2", inputs, without=("present_conv",), **attributes)
    with pytest.raises(Exception, match="past_conv is given, but the node does not name the output that replaces it"):
        nodes(inputs)


def test_a_failed_run_leaves_the_session_usable() -> None:
    inputs, operator = VALID["FeedForward"][0], valid_operator("FeedForward")
    first = operator(inputs)
    with pytest.raises(Exception, match="has shape"):
        operator(inputs | {"norm": ones(DIM + 1)})
    for a, b in zip(first, operator(inputs), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("seed", "count"), [(0, 300), pytest.param(1, 600, marks=pytest.mark.slow)])
@each("name", VALID)
def test_random_shapes_and_attributes_end_in_a_result_or_an_error(name: str, seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    inputs, attributes = VALID[name]
    numbers = (-1, 0, 1, 2, 3, 31, 32, 33, 64, 65, 2**16, 2**24, 2**24 + 1, 2**62)
    sizes = (0, 1, 2, 3, 4, 31, 32, 33, 40, 64, 65, 70, 2176)
    outcomes = set()
    for _ in range(count):
        changed = dict(inputs)
        for key in random.choice(list(inputs), random.integers(0, 3)):
            shape = tuple(random.choice(sizes, random.integers(0, 4)))
            if np.prod(shape) < 2**22:
                changed[str(key)] = random.integers(0, 3, shape).astype(inputs[str(key)].dtype)
        for key in random.choice(list(inputs), random.integers(0, 2)):
            changed.pop(str(key), None)
        others = {
            key: int(random.choice(numbers)) if isinstance(value, int) and random.random() < 0.15 else value
            for key, value in attributes.items()
        }
        try:
            run(name, changed, 2, **others)
            outcomes.add("a result")
        except Exception as error:  # ONNX Runtime has a class for each kind of status
            outcomes.add(str(error)[:18])
    assert outcomes == {"a result", "[ONNXRuntimeError]"}


def test_an_output_buffer_of_another_shape_is_refused() -> None:
    inputs, operator = VALID["Logits"][0], valid_operator("Logits")
    binding = operator.session.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(ones(2, VOCAB + 1)))
    with pytest.raises(Exception, match=r"\[ONNXRuntimeError\].*[Ss]hape"):
        operator.session.run_with_iobinding(binding)


def test_an_older_onnx_runtime_is_told_which_version_is_needed() -> None:
    messages: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    def create_status(code: int, text: bytes) -> int:
        messages.append(text)
        return 4711

    table = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p))

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    def get_api(version: int) -> int | None:
        return ctypes.addressof(table) if version < 24 else None

    base = (ctypes.c_void_p * 2)(ctypes.cast(get_api, ctypes.c_void_p), None)
    register = open_library().RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, base) == 4711
    assert messages == [b"adaptive_ops needs ONNX Runtime 1.24 or later"]
