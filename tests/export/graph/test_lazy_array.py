"""Arrays that are computed when they are read."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.cases import each

from adaptive_lm.export.fused.packed import pack_lazily
from adaptive_lm.export.graph import lazy_array
from adaptive_lm.export.graph.lazy_array import LazyArray, concatenate
from adaptive_lm.export.graph.weights import quantize_columns, quantize_lazily
from adaptive_lm.export.source import stored_lazily
from adaptive_lm.runtime.ops.layout import GROUP, Precision, pack

RANDOM = np.random.default_rng(0)
CUBE = RANDOM.normal(size=(4, 6, 10)).astype(np.float32)
FLAT = RANDOM.normal(size=(150, 48)).astype(np.float32)


def stored(array: np.ndarray) -> LazyArray:
    return LazyArray.of(array, lambda values: values.astype(np.float32))


def computed(array: np.ndarray) -> LazyArray:
    return stored(array).map(lambda rows: rows)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy_array, "PIECE", 100)


@each("kind", [stored, computed])
@each(
    ("change", "array"),
    [
        (lambda a: a, CUBE),
        (lambda a: a[2], CUBE),
        (lambda a: a[1][3], CUBE),
        (lambda a: a.swapaxes(1, 2), CUBE),
        (lambda a: a.swapaxes(1, 2)[3], CUBE),
        (lambda a: a.transpose(2, 0, 1), CUBE),
        (lambda a: a.reshape(-1), CUBE),
        (lambda a: a.reshape(24, -1), CUBE),
        (lambda a: a.reshape(2, 2, 60).transpose(0, 2, 1), CUBE),
        (lambda a: a.T, FLAT),
        (lambda a: a.T.T, FLAT),
        (lambda a: a.T.reshape(8, 6, 150), FLAT),
        (lambda a: a.T.reshape(8, 6, 150)[5], FLAT),
        (lambda a: a.reshape(10, 15, 48).transpose(0, 2, 1), FLAT),
        (lambda a: a.astype(np.float16), FLAT),
    ],
)
def test_a_changed_array_is_that_of_numpy(
    kind: Callable[[np.ndarray], LazyArray], change: Callable[[Any], Any], array: np.ndarray
) -> None:
    lazy, expected = change(kind(array)), change(array)
    assert (lazy.shape, lazy.ndim, lazy.dtype, lazy.nbytes) == (
        expected.shape, expected.ndim, expected.dtype, expected.nbytes,
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(lazy), expected)
    assert b"".join(piece.tobytes() for piece in lazy.pieces()) == expected.tobytes()
    np.testing.assert_array_equal(lazy[1:3], expected[1:3])


def test_a_large_array_is_read_in_pieces() -> None:
    sizes: list[int] = []

    def read(begin: int, end: int) -> np.ndarray:
        sizes.append(end - begin)
        return FLAT[begin:end]

    assert sum(len(piece) for piece in LazyArray(FLAT.shape, FLAT.dtype, read).pieces()) == 150
    assert sizes == [1] * 150, "a row has more bytes than a piece"


def test_arrays_are_joined_along_their_first_axis() -> None:
    joined = concatenate([stored(FLAT), stored(FLAT[:7]), stored(FLAT[3:])])
    expected = np.concatenate([FLAT, FLAT[:7], FLAT[3:]])
    np.testing.assert_array_equal(np.asarray(joined), expected)
    np.testing.assert_array_equal(joined[148:160], expected[148:160])


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_small_arrays_keep_their_shape(shape: tuple[int, ...]) -> None:
    value = np.full(shape, 2.5, np.float32)
    assert np.array_equal(np.asarray(stored(value)), value)
    assert np.asarray(stored(value)).shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_a_tensor_is_widened_to_float32_when_it_is_read(dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(FLAT * 100).to(dtype)
    lazy = stored_lazily(tensor)
    assert lazy.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(lazy.T), tensor.float().numpy().T)


@each("kind", [stored, computed])
@each("array", [FLAT.T, CUBE])
@each("scales_first", [False, True])
def test_int8_in_pieces_is_int8_of_the_whole(
    kind: Callable[[np.ndarray], LazyArray], array: np.ndarray, scales_first: bool
) -> None:
    weight = kind(array.T).T if array.ndim == 2 else kind(array)
    codes, scales = quantize_lazily(weight)
    order = (scales, codes) if scales_first else (codes, scales)
    results = {id(lazy): np.asarray(lazy) for lazy in order}
    expected = quantize_columns(array)
    for lazy, whole in zip((codes, scales), expected, strict=True):
        np.testing.assert_array_equal(results[id(lazy)], whole)
        assert results[id(lazy)].dtype == whole.dtype


@each("precision", ["fp32", "bf16", "int8", "int4"])
@each("scaled", [False, True])
@each("shape", [(150, 48), (GROUP, 32), (3, 70, 40)])
def test_a_matrix_packed_in_pieces_is_packed_whole(precision: Precision, scaled: bool, shape: tuple[int, ...]) -> None:
    matrix = RANDOM.normal(size=shape).astype(np.float32)
    scales = RANDOM.uniform(0.8, 1, (*shape[:-1], -(-shape[-1] // 32))).astype(np.float32) if scaled else None
    lazy = pack_lazily(stored(matrix if matrix.ndim == 2 else matrix.swapaxes(1, 2).copy()), precision, scales)
    expected = pack(matrix, precision, scales)
    assert lazy.shape == expected.shape
    np.testing.assert_array_equal(np.concatenate(list(lazy.pieces())).reshape(-1), expected)
