"""The operators of recurrent mixers against plain numpy; prompt, tokens, batch and threads give the same bits."""

import hashlib
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.cases import each
from support.operators.kernels import LIBRARY

from adaptive_lm.runtime.ops.layout import Precision

if not LIBRARY.is_file():
    pytest.skip(f"{LIBRARY.name} is not built: no C++ compiler at installation", allow_module_level=True)

from support.operators.mixer_layer import LAYER, Kind, Operator, Setting, Text, expected

Array = NDArray[Any]

TOLERANCE = {"fp32": 1e-5, "bf16": 1e-5, "int8": 2e-2, "int4": 2e-2}
"""Of the greatest output. An int8 input of a product that rounds the other way moves it by up to a part of a step."""
KINDS: tuple[Kind, ...] = ("retnet", "mamba2", "gated_delta", "rwkv7")
each_kind = each("kind", KINDS)


def name(setting: Setting) -> str:
    """Name a setting by what differs from the default."""
    fields = {key: value for key, value in vars(setting).items() if value != getattr(Setting(), key)}
    return "-".join(f"{key}={value}" for key, value in fields.items()) or "plain"


SETTINGS = [Setting(kind, policy=policy) for kind, policy in product(KINDS, ("every", "none", "project"))]
SETTINGS += [
    Setting(kind, norm=norm, norm_place=place, policy="none")
    for kind, (norm, place) in product(KINDS, (("rms", "post"), ("layer", "sandwich"), ("layer", "pre")))
]
# heads of less than a register, of one, of more than are held in registers; convolutions of one to eight tokens
SETTINGS += [
    Setting(kind, head_dim=head_dim, num_heads=heads, dim=dim, conv=conv, rank=rank)
    for kind, (head_dim, heads, dim, conv, rank) in product(
        KINDS, ((6, 3, 40, 1, 1), (16, 2, 32, 2, 5), (64, 2, 80, 8, 40), (40, 1, 65, 3, 33), (144, 1, 48, 5, 16))
    )
]
SETTINGS += [Setting("retnet", positions="none"), Setting("retnet", positions="none", head_dim=5, policy="none")]
each_setting = each("setting", SETTINGS)


def close(found: Array, wanted: Array, setting: Setting) -> None:
    scale, tolerance = np.abs(wanted).max(), TOLERANCE[setting.precision]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * scale)
    assert np.sqrt(np.mean((found - wanted) ** 2)) < tolerance / 4 * scale


def in_passes(operator: Operator, text: Text, *lengths: int) -> Array:
    """Compute a text in passes of these lengths."""
    parts, begin = [text.x[:, :0]], 0
    for length in lengths:
        parts.append(operator(text.part(slice(None), slice(begin, begin + length))))
        begin += length
    return np.concatenate(parts, axis=1)


def contents(operator: Operator) -> dict[str, bytes]:
    return {key: array.tobytes() for key, array in operator.states.items()}


@each_setting
def test_a_prompt_is_what_plain_numpy_computes(setting: Setting) -> None:
    text, operator = Text.draw(setting, 1, 40), Operator(setting, 1)
    h, states = expected(setting, text)
    close(operator(text), h, setting)
    close(operator.states["state"], states["state"], setting)
    counted = 40 if setting.policy == "project" else text.runs.sum()
    assert operator.lengths[LAYER].tolist() == [counted]


@each_setting
def test_tokens_one_by_one_have_the_bits_of_a_prompt(setting: Setting) -> None:
    text = Text.draw(setting, 1, 40)
    prompt, one_by_one, uneven = Operator(setting, 1), Operator(setting, 1), Operator(setting, 1)
    h = prompt(text)
    np.testing.assert_array_equal(in_passes(one_by_one, text, *[1] * 40), h)
    np.testing.assert_array_equal(in_passes(uneven, text, 3, 30, 0, 7), h)
    assert contents(prompt) == contents(one_by_one) == contents(uneven)


@each_kind
def test_a_long_prompt_has_the_bits_of_its_tokens(kind: Kind) -> None:
    setting = Setting(kind, policy="none")
    text = Text.draw(setting, 1, 500)  # more rows than are computed together
    prompt, halves, one_by_one = Operator(setting, 1), Operator(setting, 1), Operator(setting, 1)
    h = prompt(text)
    np.testing.assert_array_equal(in_passes(halves, text, 211, 289), h)
    np.testing.assert_array_equal(in_passes(one_by_one, text, *[1] * 500), h)
    assert contents(prompt) == contents(halves) == contents(one_by_one)
    close(h, expected(setting, text)[0], setting)


@each_setting
def test_a_batch_of_texts_of_different_lengths_has_the_bits_of_each_alone(setting: Setting) -> None:
    text, batch, alone = Text.draw(setting, 4, 20), Operator(setting, 4), []
    for b, length in enumerate((3, 0, 17, 8)):
        operator = Operator(setting, 1)
        in_passes(operator, text.part(slice(b, b + 1), slice(0, length)), *[1] * length)
        for key, array in operator.states.items():
            batch.states[key][b] = array[0]
        batch.lengths[:, b], batch.seen[b] = operator.lengths[:, 0], operator.seen[0]
        alone.append(operator(text.part(slice(b, b + 1), slice(17, 20)))[0])
    for t in range(17, 20):
        np.testing.assert_array_equal(batch(text.part(slice(None), slice(t, t + 1)))[:, 0], np.stack(alone)[:, t - 17])


@each_setting
def test_a_batch_of_prompts_has_the_bits_of_each_alone(setting: Setting) -> None:
    text = Text.draw(setting, 3, 15)
    alone = [Operator(setting, 1)(text.part(slice(b, b + 1), slice(None))) for b in range(3)]
    np.testing.assert_array_equal(Operator(setting, 3)(text), np.concatenate(alone))


@each_kind
def test_rows_of_several_slots_may_be_mixed(kind: Kind) -> None:
    setting = Setting(kind, policy="none")
    text = Text.draw(setting, 2, 6)
    prompts, mixed = Operator(setting, 2), Operator(setting, 2)
    h = prompts(text)
    order = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (1, 2), (0, 3), (0, 4), (1, 3), (1, 4), (1, 5), (0, 5)]
    b, t = np.array(order).T
    flat = Text(text.x[b, t][None], text.runs[b, t][None])
    positions = {"positions": t[:, None]} if kind == "retnet" else {}
    rows = mixed(flat, slots=b, **positions)
    np.testing.assert_array_equal(rows[0], h[b, t])
    assert contents(mixed) == contents(prompts)
    assert mixed.lengths[LAYER].tolist() == prompts.lengths[LAYER].tolist()


@each("precision", ["fp32", "bf16", "int8", "int4"])
@each_kind
def test_every_precision_is_what_plain_numpy_computes(kind: Kind, precision: Precision) -> None:
    setting = Setting(kind, dim=80, head_dim=32, num_heads=3, precision=precision)
    text = Text.draw(setting, 1, 20)
    prompt = Operator(setting, 1)(text)
    close(prompt, expected(setting, text)[0], setting)
    np.testing.assert_array_equal(in_passes(Operator(setting, 1), text, *[1] * 20), prompt)


@each_kind
def test_two_threads_have_the_bits_of_one(kind: Kind) -> None:
    setting = Setting(kind, dim=256, num_heads=8, head_dim=64)
    text = Text.draw(setting, 2, 80)
    one, two = Operator(setting, 2), Operator(setting, 2, threads=2)
    for times in (slice(0, 79), slice(79, 80)):
        part = text.part(slice(None), times)
        np.testing.assert_array_equal(two(part), one(part))
    assert contents(one) == contents(two)


def digest() -> str:
    """Return a digest of what the chosen kernels compute."""
    result = hashlib.sha256()
    for setting in SETTINGS:
        operator = Operator(setting, 1)
        result.update(operator(Text.draw(setting, 1, 40)).tobytes())
        for state in contents(operator).values():
            result.update(state)
    return result.hexdigest()


@each("policy", ["none", "project"])
@each_kind
def test_where_no_token_runs_x_passes_through_and_the_states_stay(kind: Kind, policy: Any) -> None:
    setting = Setting(kind, policy=policy)
    text = Text.draw(setting, 1, 6)
    operator = Operator(setting, 1)
    operator(text)
    before = contents(operator)
    np.testing.assert_array_equal(operator(replace(text, runs=np.zeros_like(text.runs))), text.x)
    assert contents(operator) == before


@each_kind
def test_no_tokens_are_no_rows(kind: Kind) -> None:
    operator = Operator(Setting(kind), 1)
    before = contents(operator)
    assert operator(Text.draw(operator.setting, 1, 0)).shape == (1, 0, 48)
    assert contents(operator) == before


@each("policy", ["every", "none", "project"])
@each_kind
def test_states_that_are_not_written_in_place_are_copied_first(kind: Kind, policy: Any) -> None:
    setting = Setting(kind, policy=policy)
    text = Text.draw(setting, 2, 9)
    shared, copied = Operator(setting, 2), Operator(setting, 2, in_place=False)
    past = copied.states
    for times in (slice(0, 5), slice(5, 9)):
        part = text.part(slice(None), times)
        np.testing.assert_array_equal(copied(part), shared(part))
    assert not any(array.any() for array in past.values())
    assert contents(copied) == contents(shared)


@each_kind
def test_a_slot_without_rows_keeps_its_states(kind: Kind) -> None:
    setting = Setting(kind)
    text, operator = Text.draw(setting, 3, 5), Operator(setting, 3)
    operator(text)
    before = {key: array.copy() for key, array in operator.states.items()}
    positions = {"positions": np.full((1, 5), 7)} if kind == "retnet" else {}
    operator(text.part(slice(0, 1), slice(None)), slots=np.array([1]), **positions)
    for key, array in operator.states.items():
        np.testing.assert_array_equal(array[[0, 2]], before[key][[0, 2]])
        assert (array[1] != before[key][1]).any()


@each(
    ("changes", "message"),
    [
        ({"slots": np.array([-1])}, "slots is -1 for row 0, expected 0 to 0"),
        ({"slots": np.array([0, 0, 1, 0])}, "slots is 1 for row 2, expected 0 to 0"),
        ({"slots": np.array([0, 0, 0])}, "slots has 3 rows, which 4 tokens cannot be divided into"),
        ({"lengths": np.full((3, 1), -1)}, "lengths is -1 for layer 1 and slot 0"),
        ({"lengths": np.zeros((1, 1), np.int64)}, "lengths has 1 layers, expected more than 1"),
        ({"lengths": np.zeros((3, 2), np.int64)}, "past_state has shape"),
        ({"past_state": np.zeros((1, 4, 12, 11), np.float32)}, "past_state has shape"),
        ({"past_state": np.zeros((1, 4, 12), np.float32)}, "past_state has shape"),
    ],
)
@each_kind
def test_impossible_values_are_refused_before_anything_is_written(
    kind: Kind, changes: dict[str, Array], message: str
) -> None:
    setting = Setting(kind)
    operator, text = Operator(setting, 1), Text.draw(setting, 1, 4)
    with pytest.raises(RuntimeError, match=message):
        operator(text, **changes)
    assert contents(operator) == contents(Operator(setting, 1))
    assert operator(text).shape == text.x.shape


@pytest.mark.parametrize("kind", ["mamba2", "gated_delta", "rwkv7"])
def test_inputs_of_a_convolution_of_another_shape_are_refused(kind: Kind) -> None:
    setting = Setting(kind)
    operator, text = Operator(setting, 1), Text.draw(setting, 1, 4)
    shape = operator.states["conv"].shape
    for wrong in ((*shape[:2], shape[2] + 1), (shape[0], shape[1] - 1, shape[2]), shape[1:]):
        with pytest.raises(RuntimeError, match="past_conv has shape"):
            operator(text, past_conv=np.zeros(wrong, np.float32))
    assert contents(operator) == contents(Operator(setting, 1))


def test_a_position_without_angles_is_refused_for_tokens_that_run() -> None:
    setting = Setting("retnet", policy="none")
    operator, text = Operator(setting, 1), Text.draw(setting, 1, 4)
    text.runs[:] = [[True, False, True, True]]
    operator(text, positions=np.array([[0, 9999, 1, 2]]))  # a token that skips is not rotated
    with pytest.raises(RuntimeError, match="positions is 512 for row 2, expected 0 to 511"):
        operator(text, positions=np.array([[0, 1, 512, 2]]))
    with pytest.raises(RuntimeError, match="positions has 3 tokens, but x has 4 rows"):
        operator(text, positions=np.array([[0, 1, 2]]))
