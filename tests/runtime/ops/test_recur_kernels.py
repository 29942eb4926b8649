"""The kernels of recurrent mixers against plain numpy, and each instruction set against the others, to the last bit."""

from typing import Any

import numpy as np
import pytest
from support.cases import each
from support.operators.kernels import GIVEN, LIBRARY, Floats, Table, open_library, tables

if not (GIVEN or LIBRARY.is_file()):
    pytest.skip(f"{LIBRARY.name} is not built: no C++ compiler at installation", allow_module_level=True)

TABLES = tables(open_library())
PLAIN = TABLES[-1]
each_table = each("table", TABLES)
# keys and values of a head: less than a register, several, as many as are held and more
SHAPES = [(1, 1), (5, 3), (16, 16), (17, 6), (48, 9), (64, 64), (100, 7), (128, 5), (129, 4), (200, 3)]
each_shape = each(("keys", "values"), SHAPES)
each_form = each("delta", [False, True])
WIDTHS = range(1, 9)
CHANNELS = (1, 15, 16, 17, 40, 64)
TOKENS = 7


def normal(*shape: int, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def steps(keys: int, values: int, delta: bool) -> dict[str, Any]:
    """Draw a state and what each of some tokens does to it."""
    unit = normal(TOKENS, keys, seed=5)
    unit /= np.sqrt((unit * unit).sum(-1, keepdims=True) + np.float32(1e-6))
    return {
        "state": normal(values, keys, seed=1),
        "w": np.random.default_rng(2).uniform(0.5, 1, (TOKENS, keys)).astype(np.float32),
        "k": normal(TOKENS, keys, seed=3) / 4,
        "r": normal(TOKENS, keys, seed=4),
        "a": -unit if delta else None,
        "b": unit * np.float32(0.7) if delta else None,
        "v": normal(TOKENS, values, seed=6),
    }


def plain(state: Floats, w: Any, k: Any, r: Any, a: Any, b: Any, v: Any) -> tuple[Any, Any]:
    """Compute the recurrence in float64."""
    S, outputs = state.astype(np.float64), []
    for t in range(len(v)):
        change = np.outer(v[t].astype(np.float64), k[t])
        if a is not None:
            change = change + np.outer(S @ a[t], b[t])
        S = S * w[t] + change
        outputs.append(S @ r[t])
    return np.stack(outputs), S


@each_table
@each_shape
@each_form
def test_the_recurrence_is_what_plain_numpy_computes(table: Table, keys: int, values: int, delta: bool) -> None:
    given = steps(keys, values, delta)
    out, state = table.recur(**given, together=TOKENS)
    expected, after = plain(**given)
    np.testing.assert_allclose(state, after, rtol=0, atol=2e-6 * np.abs(after).max())
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6 * keys**0.5 * np.abs(after).max())


@each_table
@each_shape
@each_form
def test_tokens_in_any_tasks_have_the_bits_of_plain_code(table: Table, keys: int, values: int, delta: bool) -> None:
    given = steps(keys, values, delta)
    out, state = PLAIN.recur(**given, together=1)
    for together in (1, 3, TOKENS):
        own, after = table.recur(**given, together=together)
        assert own.tobytes() == out.tobytes()
        assert after.tobytes() == state.tobytes()


@each_table
def test_a_row_of_the_state_has_the_bits_that_it_has_among_many(table: Table) -> None:
    given = steps(64, 13, delta=True)
    out, state = table.recur(**given, together=TOKENS)
    for row in range(13):
        one = given | {"state": given["state"][row : row + 1], "v": np.ascontiguousarray(given["v"][:, row : row + 1])}
        own, after = table.recur(**one, together=TOKENS)
        assert own[:, 0].tobytes() == out[:, row].tobytes()
        assert after[0].tobytes() == state[row].tobytes()


@each_table
def test_a_state_that_holds_nan_spoils_only_its_own_row(table: Table) -> None:
    given = steps(20, 6, delta=True)
    clean, _ = table.recur(**given, together=TOKENS)
    given["state"][2, 7] = np.nan
    out, state = table.recur(**given, together=TOKENS)
    assert np.isnan(out[:, 2]).all()
    assert np.isnan(state[2]).all()
    others = [0, 1, 3, 4, 5]
    assert out[:, others].tobytes() == clean[:, others].tobytes()


def convolution(channels: int, width: int, bias: bool) -> dict[str, Any]:
    return {
        "state": normal(channels, width - 1, seed=7),
        "weight": normal(width, channels, seed=8) if width > 1 else None,
        "bias": normal(channels, seed=9) if bias and width > 1 else None,
        "rows": normal(TOKENS, channels, seed=10),
    }


@each_table
@each("width", WIDTHS)
@each("bias", [False, True])
def test_a_convolution_is_what_plain_numpy_computes(table: Table, width: int, bias: bool) -> None:
    for channels in CHANNELS:
        given = convolution(channels, width, bias)
        out, state = table.convolve(**given, together=TOKENS)
        seen = np.concatenate([given["state"].T, given["rows"]]).astype(np.float64)  # (K - 1 + T, C)
        weight = np.ones((1, channels)) if width == 1 else given["weight"]
        total = sum(seen[j : j + TOKENS] * weight[j] for j in range(width)) + (
            given["bias"] if given["bias"] is not None else 0
        )
        np.testing.assert_allclose(out, total / (1 + np.exp(-total)), rtol=0, atol=2e-6 * np.abs(total).max())
        np.testing.assert_array_equal(state, seen[TOKENS:].T.astype(np.float32))


@each_table
@each("width", WIDTHS)
def test_a_convolution_in_parts_has_the_bits_of_plain_code(table: Table, width: int) -> None:
    for channels in CHANNELS:
        given = convolution(channels, width, bias=True)
        out, state = PLAIN.convolve(**given, together=1)
        for together in (1, 2, TOKENS):
            own, after = table.convolve(**given, together=together)
            assert own.tobytes() == out.tobytes()
            assert after.tobytes() == state.tobytes()
        if channels > 16:  # the channels of another thread are left alone
            own, after = table.convolve(**given, together=TOKENS, first=16)
            assert own[:, 16:].tobytes() == out[:, 16:].tobytes()
            assert own[:, :16].tobytes() == given["rows"][:, :16].tobytes()
            assert after[:16].tobytes() == given["state"][:16].tobytes()


@each_table
def test_the_functions_of_gates_are_close_over_the_whole_range(table: Table) -> None:
    x = np.linspace(-60, 60, 20_001, dtype=np.float32)
    expected = 1 / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(table.sigmoid(x), expected, rtol=4e-7, atol=0)
    np.testing.assert_allclose(table.exponential(x, -0.5), np.exp(-0.5 * x.astype(np.float64)), rtol=4e-7, atol=0)
    ends = np.array([-np.inf, -1e30, 0, 1e30, np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(table.sigmoid(ends), np.array([0, 0, 0.5, 1, 1, np.nan], np.float32))
    np.testing.assert_array_equal(table.exponential(ends, 1.0), np.array([0, 0, 1, np.inf, np.inf, np.nan], np.float32))
    for length in (1, 15, 16, 17, 33):
        one = normal(length, seed=length)
        assert table.sigmoid(one).tobytes() == PLAIN.sigmoid(one).tobytes()
        assert table.exponential(one, 0.7).tobytes() == PLAIN.exponential(one, 0.7).tobytes()
