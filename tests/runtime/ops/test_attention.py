"""The operator Attention against plain numpy; prompt, tokens, batch and threads give the same bits."""

import ctypes
import hashlib
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, RuntimeException
from support.cases import each
from support.operators.kernels import LIBRARY, open_library

from adaptive_lm.runtime.ops.layout import Precision, pack, packed_bytes

if not LIBRARY.is_file():
    pytest.skip(f"{LIBRARY.name} is not built: no C++ compiler at installation", allow_module_level=True)

from support.operators.attention_formulas import attention
from support.operators.attention_layer import CacheType, Operator, Setting, Text, session

Array = NDArray[Any]

# A key or value, or an int8 input of a product, that rounds the other way moves an output by up to a part of a step.
CACHE_TOLERANCE = {"float32": 1e-5, "float16": 1e-3, "int8": 1e-2}
PRECISION_TOLERANCE = {"fp32": 1e-5, "bf16": 1e-5, "int8": 2e-2, "int4": 2e-2}


def name(setting: Setting) -> str:
    """Name a setting by what differs from the default."""
    plain = Setting()
    fields = {key: value for key, value in vars(setting).items() if value != getattr(plain, key)}
    return "-".join(f"{key}={value}" for key, value in fields.items()) or "plain"


MECHANISMS = [
    Setting(positions=positions, window=window, by_token=by_token, policy=policy, routed=routed)
    for positions, (window, by_token), policy, routed in product(
        ("none", "rope", "cope"), ((0, False), (6, False), (9, True)), ("every", "none", "project"), (False, True)
    )
]
MECHANISMS += [
    Setting(norm=norm, norm_place=place, policy=policy, routed=policy == "none", precision=precision, dim=dim)
    for (norm, place), (policy, precision, dim) in product(
        (("rms", "post"), ("rms", "sandwich"), ("layer", "pre"), ("layer", "post"), ("layer", "sandwich")),
        (("every", "fp32", 48), ("none", "fp32", 48), ("project", "int8", 80)),
    )
]
SHAPES = [
    Setting(head_dim=head_dim, capacity=capacity, cache=cache, positions=positions, window=window, num_heads=6)
    for (head_dim, positions), (capacity, window), cache in product(
        ((5, "none"), (8, "rope"), (12, "cope"), (64, "cope"), (80, "rope")),
        ((7, 0), (16, 0), (33, 0), (7, 5), (16, 4), (33, 20)),
        ("float32", "float16", "int8"),
    )
]
FEATURES = [
    Setting(qk_norm="none"),
    Setting(qk_norm="full", biases=True, num_heads=6, policy="project"),
    Setting(qk_norm="full", positions="none", head_dim=5, window=6),
    Setting(biases=True, routed=True, policy="none"),
    Setting(softcap=0.7, cache="float16"),
    Setting(softcap=30.0, window=9, by_token=True, capacity=20),
    Setting(share=0.5, head_dim=20, cache="int8"),
    Setting(share=0.75, head_dim=80, qk_norm="none", biases=True, softcap=2.0, routed=True, policy="project"),
    Setting(positions="cope", qk_norm="none", biases=True, softcap=1.5, window=9, policy="project", head_dim=12),
]
MECHANISMS += FEATURES
each_mechanism = each("setting", MECHANISMS)
each_shape = each("setting", SHAPES)


def close(found: Array, expected: Array, setting: Setting) -> None:
    tolerance = max(CACHE_TOLERANCE[setting.cache], PRECISION_TOLERANCE[setting.precision])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)
    assert np.sqrt(np.mean((found - expected) ** 2)) < tolerance / 4 * scale


def in_passes(operator: Operator, text: Text, *lengths: int) -> Array:
    """Compute a text in passes of these lengths."""
    parts, begin = [text.x[:, :0]], 0
    for length in lengths:
        parts.append(operator(text.part(slice(None), slice(begin, begin + length))))
        begin += length
    return np.concatenate(parts, axis=1)


def passes(setting: Setting, time: int) -> list[int]:
    """Return the lengths of the longest passes that a ring takes."""
    longest = setting.capacity - setting.window + 1 if setting.window else time
    return [longest] * (time // longest) + [time % longest] * (time % longest > 0)


def tokens_of(setting: Setting) -> int:
    return 2 * setting.capacity + 3 if setting.window else setting.capacity


@each_mechanism
def test_a_prompt_is_what_plain_numpy_computes(setting: Setting) -> None:
    text = Text.draw(setting, 1, 28)
    close(in_passes(Operator(setting, 1), text, *passes(setting, 28)), attention(setting, text), setting)


@each_shape
def test_every_shape_is_what_plain_numpy_computes(setting: Setting) -> None:
    time = tokens_of(setting)
    text = Text.draw(setting, 1, time)
    close(in_passes(Operator(setting, 1), text, *passes(setting, time)), attention(setting, text), setting)


@each("setting", MECHANISMS + SHAPES)
def test_tokens_one_by_one_have_the_bits_of_a_prompt(setting: Setting) -> None:
    time = tokens_of(setting)
    text = Text.draw(setting, 1, time)
    prompt = in_passes(Operator(setting, 1), text, *passes(setting, time))
    np.testing.assert_array_equal(in_passes(Operator(setting, 1), text, *[1] * time), prompt)


@each_mechanism
@each("cache", ["float32", "int8"])
def test_a_batch_of_texts_of_different_lengths_has_the_bits_of_each_alone(setting: Setting, cache: CacheType) -> None:
    setting = replace(setting, cache=cache)
    text, batch = Text.draw(setting, 4, 20), Operator(setting, 4)
    alone = []
    for b, length in enumerate((3, 0, 17, 8)):
        operator = Operator(setting, 1)
        in_passes(operator, text.part(slice(b, b + 1), slice(0, length)), *[1] * length)
        for key, array in operator.caches.items():
            batch.caches[key][b] = array[0]
        batch.lengths[:, b], batch.seen[b] = operator.lengths[:, 0], operator.seen[0]
        alone.append(operator(text.part(slice(b, b + 1), slice(17, 20)))[0])
    for t in range(17, 20):
        np.testing.assert_array_equal(batch(text.part(slice(None), slice(t, t + 1)))[:, 0], np.stack(alone)[:, t - 17])


@each_mechanism
def test_a_batch_of_prompts_has_the_bits_of_each_alone(setting: Setting) -> None:
    text = Text.draw(setting, 3, 15)
    alone = [Operator(setting, 1)(text.part(slice(b, b + 1), slice(None))) for b in range(3)]
    np.testing.assert_array_equal(Operator(setting, 3)(text), np.concatenate(alone))


@each("precision", ["fp32", "bf16", "int8", "int4"])
@each("routed", [False, True])
def test_every_precision_is_what_plain_numpy_computes(precision: Precision, routed: bool) -> None:
    setting = Setting(dim=80, head_dim=32, precision=precision, routed=routed)
    text = Text.draw(setting, 1, 20)
    prompt = Operator(setting, 1)(text)
    close(prompt, attention(setting, text), setting)
    np.testing.assert_array_equal(in_passes(Operator(setting, 1), text, *[1] * 20), prompt)


@each("cache", ["float32", "float16", "int8"])
@each("mechanism", ["rope", "cope", "routed"])
def test_two_threads_have_the_bits_of_one(cache: CacheType, mechanism: str) -> None:
    setting = Setting(dim=256, num_heads=8, num_kv_heads=4, head_dim=64, capacity=150, cache=cache)
    setting = replace(setting, routed=True) if mechanism == "routed" else replace(setting, positions=mechanism)
    text = Text.draw(setting, 2, 130)
    one, two = Operator(setting, 2), Operator(setting, 2, threads=2)
    for times in (slice(0, 129), slice(129, 130)):
        part = text.part(slice(None), times)
        np.testing.assert_array_equal(two(part), one(part))
    assert {key: array.tobytes() for key, array in one.caches.items()} == {
        key: array.tobytes() for key, array in two.caches.items()
    }


def digest() -> str:
    """Return a digest of what the chosen kernels compute."""
    result = hashlib.sha256()
    for setting in (*MECHANISMS, *SHAPES):
        time = tokens_of(setting)
        result.update(in_passes(Operator(setting, 1), Text.draw(setting, 1, time), *passes(setting, time)).tobytes())
    return result.hexdigest()


@pytest.mark.parametrize("policy", ["none", "project"])
def test_where_no_token_runs_x_passes_through(policy: Any) -> None:
    setting = Setting(policy=policy, positions="cope")
    text = Text.draw(setting, 1, 6)
    operator, none_run = Operator(setting, 1), replace(text, runs=np.zeros_like(text.runs))
    np.testing.assert_array_equal(operator(none_run), text.x)
    empty = Operator(setting, 1).caches
    if policy == "none":
        assert all(operator.caches[key].tobytes() == array.tobytes() for key, array in empty.items())
    else:  # their keys are seen by later tokens
        np.testing.assert_array_equal(operator.caches["counted"][0, 0, :6, 0], np.zeros(6))
        close(operator(text)[0], attention(setting, joined(none_run, text))[0, 6:], setting)


def joined(first: Text, second: Text) -> Text:
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return Text(*(np.concatenate(pair, axis=1) for pair in pairs))


@each_mechanism
def test_no_tokens_are_no_rows(setting: Setting) -> None:
    operator = Operator(setting, 1)
    before = {key: array.tobytes() for key, array in operator.caches.items()}
    assert operator(Text.draw(setting, 1, 0)).shape == (1, 0, setting.dim)
    assert before == {key: array.tobytes() for key, array in operator.caches.items()}


@each("cache", ["float32", "float16", "int8"])
@each("policy", ["every", "none", "project"])
def test_a_cache_that_is_not_written_in_place_is_copied_first(policy: Any, cache: CacheType) -> None:
    setting = Setting(policy=policy, positions="cope", cache=cache)
    text = Text.draw(setting, 2, 9)
    shared, copied = Operator(setting, 2), Operator(setting, 2, in_place=False)
    past = copied.caches
    empty = {key: array.tobytes() for key, array in past.items()}
    for times in (slice(0, 5), slice(5, 9)):
        part = text.part(slice(None), times)
        np.testing.assert_array_equal(copied(part), shared(part))
    assert {key: array.tobytes() for key, array in past.items()} == empty
    for key, array in shared.caches.items():
        assert copied.caches[key].tobytes() == array.tobytes()


@pytest.mark.parametrize("head_dim", [16, 32, 64, 128])
def test_weights_of_heads_that_are_not_chosen_are_not_read(head_dim: int) -> None:
    setting = Setting(num_heads=8, num_kv_heads=4, head_dim=head_dim, routed=True)
    text = Text.draw(setting, 1, 1)
    text.head_weights[:] = [0, 0, 0, 0, 0.5, 0, 1.5, 0]
    expected = Operator(setting, 1)(text)
    close(expected, attention(setting, text), setting)
    weights = setting.weights()
    # a group of 64 outputs of q and a block of 32 inputs of o are read whole
    read, used = (
        {head for head in range(8) if any(head // together == chosen // together for chosen in (4, 6))}
        for together in (max(64 // head_dim, 1), max(32 // head_dim, 1))
    )
    q, o = weights["q"].reshape(8, head_dim, -1), weights["o"].reshape(-1, 8, head_dim)
    q[[head for head in range(8) if head not in read]] = np.nan
    o[:, [head for head in range(8) if head not in used]] = np.nan
    changes = {"q": pack(weights["q"], "fp32"), "o": pack(weights["o"], "fp32")}
    library = open_library()
    library.adaptive_ops_bytes_read.restype = ctypes.c_int64
    before = library.adaptive_ops_bytes_read()
    np.testing.assert_array_equal(Operator(setting, 1)(text, **changes), expected)
    of_q = packed_bytes("fp32", len(read) * head_dim, setting.dim)
    of_o = packed_bytes("fp32", setting.dim, len(used) * head_dim)
    of_kv = packed_bytes("fp32", 8 * head_dim, setting.dim)
    assert library.adaptive_ops_bytes_read() - before == of_q + of_o + of_kv


def test_a_token_without_heads_passes_through_and_leaves_its_key() -> None:
    setting = Setting(routed=True)
    text = Text.draw(setting, 1, 8)
    text.head_weights[0, 2:5] = 0
    h = Operator(setting, 1)(text)
    np.testing.assert_array_equal(h[0, 2:5], text.x[0, 2:5])
    close(h, attention(setting, text), setting)


def test_int8_caches_hold_a_scale_of_each_key_and_value() -> None:
    setting, wide = Setting(cache="int8", positions="none", capacity=20), Setting(positions="none", capacity=20)
    text = Text.draw(setting, 1, 20)
    operator, exact = Operator(setting, 1), Operator(wide, 1)
    operator(text), exact(text)
    codes, scales = operator.caches["value"][..., :16], operator.caches["value"][..., 16:].copy().view(np.float32)
    values = exact.caches["value"]
    np.testing.assert_allclose(scales[..., 0], np.abs(values).max(-1) / 127, rtol=1e-6)
    np.testing.assert_allclose(codes * scales, values, atol=scales.max() * 0.51)
    # keys: a block of 16 cells and one of 4, components outermost, the scales of a block behind it
    bytes_, floats = operator.caches["key"].reshape(2, -1), exact.caches["key"].reshape(2, -1)
    for begin, cells in ((0, 16), (16, 4)):
        block = bytes_[:, begin * 20 : (begin + cells) * 20]
        keys = floats[:, begin * 16 : (begin + cells) * 16].reshape(2, 16, cells)
        scale = np.ascontiguousarray(block[:, 16 * cells :]).view(np.float32)
        codes = block[:, : 16 * cells].reshape(2, 16, cells)
        np.testing.assert_allclose(codes * scale[:, None], keys, atol=scale.max() * 0.51)


@each(
    ("setting", "changes", "message"),
    [
        (Setting(), {"x": (4, 47)}, "norm has shape"),
        (Setting(), {"positions": (2, 3)}, "input positions has 6 tokens, but x has 4 rows"),
        (Setting(), {"lengths": (1, 1)}, "lengths has 1 layers, expected more than 1"),
        (Setting(), {"lengths": (3, 2)}, "past_key has shape"),
        (Setting(), {"lengths": (3,)}, "lengths has shape"),
        (Setting(), {"slots": (3,)}, "slots has 3 rows, which 4 tokens cannot be divided into"),
        (Setting(), {"slots": (0,)}, "slots has 0 rows, which 4 tokens cannot be divided into"),
        (Setting(), {"slots": (1, 1)}, "slots has shape"),
        (Setting(policy="none"), {"runs": (4, 2)}, "runs has shape"),
        (Setting(routed=True), {"head_weights": (4, 5)}, "head_weights has shape"),
        (Setting(window=5, by_token=True), {"windows": (5,)}, "windows has shape"),
        (Setting(), {"q": (100,)}, "q has 100 bytes, expected a vector of"),
        (Setting(), {"kv": (100,)}, "kv has 100 bytes"),
        (Setting(), {"o": (100,)}, "o has 100 bytes"),
        (Setting(), {"q_norm": (15,)}, "q_norm has shape"),
        (Setting(qk_norm="full"), {"q_norm": (16,)}, "q_norm has shape"),
        (Setting(qk_norm="full"), {"k_norm": (64,)}, "k_norm has shape"),
        (Setting(biases=True), {"q_bias": (32,)}, "q_bias has shape"),
        (Setting(biases=True), {"kv_bias": (32,)}, "kv_bias has shape"),
        (Setting(biases=True), {"o_bias": (64,)}, "o_bias has shape"),
        (Setting(share=0.5), {"cos": (160, 8)}, "cos has shape"),
        (Setting(), {"cos": (160, 7)}, "cos has shape"),
        (Setting(), {"sin": (150, 8)}, "sin"),
        (Setting(positions="cope"), {"position_embedding": (1, 15, 16)}, "position_embedding has shape"),
        (Setting(positions="cope"), {"position_embedding": (0, 16, 16)}, "position_embedding has shape"),
        (Setting(), {"past_key": (1, 3, 33, 16)}, "past_key has shape"),
        (Setting(), {"past_key": (1, 2, 33, 17)}, "past_key has 17 elements of a cell, expected 16 of float32"),
        (
            Setting(cache="int8"),
            {"past_key": (1, 2, 33, 16)},
            "past_key has 16 elements of a cell, expected 20",
        ),
        (Setting(), {"past_value": (1, 2, 32, 16)}, "past_value has shape"),
        (Setting(), {"past_key": (1, 2, 0, 16), "past_value": (1, 2, 0, 16)}, "past_key has no cells"),
        (Setting(policy="project", positions="cope"), {"past_counted": (1, 1, 32, 1)}, "past_counted has shape"),
    ],
)
def test_wrong_shapes_are_refused(setting: Setting, changes: dict[str, tuple[int, ...]], message: str) -> None:
    operator, text = Operator(setting, 1, in_place=False), Text.draw(setting, 1, 4)
    arrays = operator.inputs(text)
    wrong = {key: np.zeros(shape, arrays[key].dtype) for key, shape in changes.items()}
    with pytest.raises(RuntimeError, match=message):
        operator(text, **wrong)
    assert operator(text).shape == text.x.shape


@each(
    ("setting", "changes", "message"),
    [
        (Setting(capacity=3), {}, "past_key has 3 cells, expected at least 4"),
        (Setting(), {"lengths": np.full((3, 1), 30)}, "past_key has 33 cells, expected at least 34"),
        (Setting(), {"slots": np.array([-1])}, "slots is -1 for row 0, expected 0 to 0"),
        (Setting(), {"slots": np.array([0, 0, 1, 0])}, "slots is 1 for row 2, expected 0 to 0"),
        (Setting(), {"slots": np.array([2**62])}, "slots is 4611686018427387904 for row 0"),
        (Setting(), {"lengths": np.full((3, 1), -1)}, "lengths is -1 for layer 1 and slot 0"),
        (Setting(), {"lengths": np.full((3, 1), 2**62)}, "lengths is 4611686018427387904"),
        (Setting(), {"positions": np.array([[0, 1, 160, 2]])}, "positions is 160 for row 2, expected 0 to 159"),
        (Setting(), {"positions": np.array([[0, -1, 2, 3]])}, "positions is -1 for row 1"),
        (Setting(window=9, capacity=9), {"lengths": np.full((3, 1), 20)}, "past_key has 9 cells, expected at least 12"),
        (
            Setting(window=9, by_token=True),
            {"windows": np.array([3, 0, 3, 3])},
            "windows is 0 for row 1, expected at least 1",
        ),
    ],
)
def test_impossible_values_are_refused_before_anything_is_written(
    setting: Setting, changes: dict[str, Array], message: str
) -> None:
    operator, text = Operator(setting, 1), Text.draw(setting, 1, 4)
    with pytest.raises(RuntimeError, match=message):
        operator(text, **changes)
    assert operator.caches["key"].tobytes() == Operator(setting, 1).caches["key"].tobytes()


def test_caches_of_other_types_are_refused() -> None:
    operator, text = Operator(Setting(cache="float64"), 1), Text.draw(Setting(), 1, 2)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="past_key holds float64, expected float32, float16 or int8"):
        operator(text)


def test_heads_that_are_no_multiple_of_the_key_heads_are_refused() -> None:
    with pytest.raises(RuntimeException, match="num_heads is 4, expected a multiple of num_kv_heads, 3"):
        Operator(Setting(num_kv_heads=3), 1)(Text.draw(Setting(), 1, 2))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (Setting(qk_norm="none"), "input q_norm is given, but qk_norm is 0"),
        (Setting(positions="none"), "input cos is given, but rotated is 0"),
        (Setting(qk_norm="full", routed=True), "input head_weights is given, but qk_norm is 2"),
    ],
)
def test_inputs_that_the_attributes_exclude_are_refused(setting: Setting, message: str) -> None:
    given = Setting().weights()
    unread = {} if setting.qk_norm == "full" else {name: given[name] for name in ("q_norm", "k_norm", "cos", "sin")}
    with pytest.raises(RuntimeError, match=message):
        Operator(setting, 1)(Text.draw(setting, 1, 4), **unread)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (Setting(share=0.3, head_dim=10), "rotated is 3, expected an even number"),
        (Setting(softcap=-1.0), "softcap is -1"),
        (Setting(softcap=float("nan")), "softcap is -?nan"),
    ],
)
def test_attributes_that_mean_nothing_are_refused(setting: Setting, message: str) -> None:
    with pytest.raises(RuntimeException, match=message):
        Operator(setting, 1)(Text.draw(Setting(), 1, 2))


def test_without_the_norms_that_the_attributes_state_nothing_is_computed() -> None:
    inputs = Operator(Setting(), 1).inputs(Text.draw(Setting(), 1, 2))
    del inputs["q_norm"]
    with pytest.raises(InvalidArgument, match="input q_norm is missing, but qk_norm is 1"):
        session(Setting(), 1, frozenset(inputs)).run(None, inputs)


def test_a_skipped_token_that_the_same_pass_overwrites_leaves_no_key() -> None:
    setting = Setting(policy="project", window=4, capacity=8)
    text = Text.draw(setting, 1, 21)
    text.runs[:] = np.arange(21) == 20  # the prompt is longer than the ring, and only its last token looks back
    close(Operator(setting, 1)(text), attention(setting, text), setting)
