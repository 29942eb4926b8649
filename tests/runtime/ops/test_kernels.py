"""Each kernel against plain numpy, and each instruction set against the others, to the last bit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from reference import model as reference
from support.cases import each
from support.operators.kernels import ACTIVATIONS, GIVEN, LIBRARY, Floats, Table, open_library, tables

from adaptive_lm.runtime.ops.layout import BLOCK, GROUP, PRECISIONS, Precision, pack, rounded

if not (GIVEN or LIBRARY.is_file()):
    pytest.skip(f"{LIBRARY.name} is not built: no C++ compiler at installation", allow_module_level=True)

TABLES = tables(open_library())
PLAIN = TABLES[-1]
each_table = each("table", TABLES)
each_precision = each("precision", PRECISIONS)
SHAPES = [(1, 1), (1, 33), (65, 1), (64, 32), (63, 31), (65, 33), (130, 96), (200, 160)]
each_shape = each(("outputs", "inputs"), SHAPES)
LENGTHS = [1, 2, 15, 16, 17, 31, 32, 63, 64, 65, 100, 128, 129, 257]
each_length = each("n", LENGTHS)


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def quantized(x: Floats) -> Floats:
    """Return the values (N, K) that int8 rows stand for, in plain numpy."""
    rows, inputs = x.shape
    blocks = np.pad(x, ((0, 0), (0, -inputs % BLOCK))).reshape(rows, -(-inputs // BLOCK), BLOCK)
    greatest = np.abs(blocks).max(-1, keepdims=True)
    greatest[greatest < 2.0**-100] = 0
    factor = np.divide(np.float32(127), greatest, out=np.zeros_like(greatest), where=greatest > 0)
    codes = np.rint(blocks * factor)
    values = codes * (greatest / np.float32(127))
    return np.asarray(values.reshape(rows, blocks.shape[1] * BLOCK)[:, :inputs], np.float32)


def product(weight: Floats, precision: Precision, x: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return W x (N, outputs) in float64 and the sums of magnitudes that bound its rounding."""
    w = rounded(weight, precision).astype(np.float64)
    wide = (x if precision in ("fp32", "bf16") else quantized(x)).astype(np.float64)
    return wide @ w.T, np.abs(wide) @ np.abs(w).T


def same(a: Any, b: Any) -> bool:
    """Whether two arrays agree to the bit; a NaN is one value."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    return bool(((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))).all())


@each_table
@each_precision
@each_shape
def test_a_product_is_that_of_numpy(table: Table, precision: Precision, outputs: int, inputs: int) -> None:
    weight = normal(outputs, inputs, seed=1)
    packed = pack(weight, precision)
    for rows in (0, 1, 2, 3, 5, 7, 13):
        x = normal(rows, inputs, seed=2)
        result = table.multiply(packed, precision, outputs, x)
        expected, magnitude = product(weight, precision, x)
        assert result.shape == expected.shape
        assert (np.abs(result - expected) <= 2e-6 * magnitude).all(), rows


@each_table
@each_precision
def test_a_row_alone_has_the_bits_that_it_has_among_many(table: Table, precision: Precision) -> None:
    packed, x = pack(normal(200, 160), precision), normal(23, 160, seed=3)
    together = table.multiply(packed, precision, 200, x)
    for number in range(1, 23):
        assert same(together[:number], table.multiply(packed, precision, 200, x[:number]))
    for row in range(23):
        assert same(together[row : row + 1], table.multiply(packed, precision, 200, x[row : row + 1]))


@each_table
@each_precision
@each("rows", [1, 7])
def test_groups_in_parts_give_the_whole_and_write_nothing_else(table: Table, precision: Precision, rows: int) -> None:
    packed, x = pack(normal(250, 96), precision), normal(rows, 96, seed=4)
    whole = table.multiply(packed, precision, 250, x)
    parts = np.full((rows, 250), np.nan, np.float32)
    table.multiply(packed, precision, 250, x, groups=(1, 3), out=parts)
    assert np.isnan(parts[:, :GROUP]).all()
    assert np.isnan(parts[:, 3 * GROUP :]).all()
    assert same(parts[:, GROUP : 3 * GROUP], whole[:, GROUP : 3 * GROUP])
    table.multiply(packed, precision, 250, x, groups=(0, 1), out=parts)
    table.multiply(packed, precision, 250, x, groups=(3, 4), out=parts)
    assert same(parts, whole)


@each_table
@each_precision
@each("blocks", [[], [0], [4], [1, 3], [0, 1, 2, 3, 4]])
def test_blocks_that_are_left_out_count_as_zero_inputs(table: Table, precision: Precision, blocks: list[int]) -> None:
    packed = pack(normal(70, 160), precision)
    for rows in (1, 2, 7):
        x = normal(rows, 160, seed=5)
        masked = np.zeros_like(x)
        for b in blocks:
            masked[:, b * BLOCK : (b + 1) * BLOCK] = x[:, b * BLOCK : (b + 1) * BLOCK]
        result = table.multiply(packed, precision, 70, x, blocks)
        assert same(result + 0.0, table.multiply(packed, precision, 70, masked) + 0.0), rows


@each_table
@each("precision", ["int8", "int4"])
def test_the_greatest_codes_and_activations_do_not_overflow(table: Table, precision: Precision) -> None:
    # rows of equal sign reach the greatest sums: 127 * 127 * 32 in int8, 15 * 127 * 32 and 15.94 zero points in int4
    weight = np.stack([np.full(64, 1.0), np.full(64, -1.0), np.tile([1.0, -1.0], 32)]).astype(np.float32)
    x = np.stack([np.full(64, 1.0), np.full(64, -1.0), np.tile([-1.0, 1.0], 32)]).astype(np.float32)
    result = table.multiply(pack(weight, precision), precision, 3, x)
    expected, magnitude = product(weight, precision, x)
    assert (np.abs(result - expected) <= 1e-6 * magnitude).all()
    assert abs(result[0, 0]) > 60


EXTREMES = {
    "zeros": np.zeros(96),
    "huge": np.full(96, 1e30),
    "denormal": np.full(96, 1e-41),
    "tiny": np.full(96, 1e-33),
    "mixed": np.tile([1e30, -1e-30, 0.0, 1e-40], 24),
    "infinite": np.r_[np.inf, np.ones(95)],
    "nan": np.r_[np.ones(50), np.nan, np.ones(45)],
}


@each_table
@each_precision
@each("name", EXTREMES)
def test_extreme_inputs_give_the_bits_of_plain_code(table: Table, precision: Precision, name: str) -> None:
    packed = pack(normal(70, 96), precision)
    for rows in (1, 2, 7):
        x = np.tile(EXTREMES[name].astype(np.float32), (rows, 1))
        result = table.multiply(packed, precision, 70, x)
        assert same(result, PLAIN.multiply(packed, precision, 70, x)), rows
        if name in ("infinite", "nan"):
            assert not np.isfinite(result).any(), rows
        else:
            expected, magnitude = product(normal(70, 96), precision, x)
            smallest = 2.0**-149  # each of 96 additions rounds to a multiple of it
            assert (np.abs(result - expected) <= 2e-6 * magnitude + 96 * smallest / 2).all(), rows


@each_table
def test_rows_are_quantised_as_numpy_does(table: Table) -> None:
    x = normal(32 * 40, seed=6) * np.repeat(10.0 ** np.arange(-20, 20), 32).astype(np.float32)
    x[64:96] = 0
    row = table.quantize(x)
    blocks = x.reshape(-1, BLOCK)
    greatest = np.abs(blocks).max(-1)
    assert same(row.scales, greatest / np.float32(127))
    factor = np.divide(np.float32(127), greatest, out=np.zeros_like(greatest), where=greatest > 0)
    codes = np.rint(blocks * factor[:, None]).astype(np.int8)
    assert (row.codes.reshape(-1, BLOCK) == codes).all()
    assert (row.sums == codes.astype(np.int32).sum(-1)).all()


@each_table
@each_precision
@each_shape
def test_a_row_of_the_matrix_is_what_a_product_multiplies_by(
    table: Table, precision: Precision, outputs: int, inputs: int
) -> None:
    weight = normal(outputs, inputs, seed=7)
    packed, expected = pack(weight, precision), rounded(weight, precision)
    for output in {0, outputs // 2, outputs - 1}:
        assert same(table.matrix_row(packed, precision, outputs, inputs, output), expected[output])


def run_all(table: Table, n: int, seed: int, factor: float = 1.0) -> dict[str, Any]:
    """Return the result of every kernel over vectors of n values."""
    a, b = normal(n, seed=seed) * np.float32(factor), normal(n, seed=seed + 1)
    angles = normal(n, seed=seed + 2)
    powers, total = table.softmax(a)
    return {
        "dot": table.dot(a, b),
        "rms_norm": table.rms_norm(a, b, 1e-5),
        "layer_norm": table.layer_norm(a, b, angles, 1e-5),
        "softcap": table.softcap(a, 1.5),
        "rotate": table.rotate(np.r_[a, b], np.cos(angles), np.sin(angles)),
        "add_scaled": table.add_scaled(a, b, 0.3),
        "softmax": powers,
        "softmax_sum": total,
        **{name: table.activate(name, a, b, 0.7) for name in ACTIVATIONS},
        **{f"{name} alone": table.activate(name, a, None, 0.7) for name in ACTIVATIONS},
    }


def expected_of(n: int, seed: int, factor: float = 1.0) -> dict[str, Any]:
    """Return what `run_all` does, in plain numpy with float64."""
    a, b = (normal(n, seed=seed) * np.float32(factor)).astype(np.float64), normal(n, seed=seed + 1).astype(np.float64)
    angles = normal(n, seed=seed + 2)
    c, s = np.cos(angles).astype(np.float64), np.sin(angles).astype(np.float64)
    powers = np.exp(a - a.max())
    return {
        "dot": a @ b,
        "rms_norm": a / np.sqrt((a * a).mean() + 1e-5) * b,
        "layer_norm": (a - a.mean()) / np.sqrt(a.var() + 1e-5) * b + angles,
        "softcap": 1.5 * np.tanh(a / 1.5),
        "rotate": np.r_[a * c - b * s, b * c + a * s],
        "add_scaled": a + np.float64(np.float32(0.3)) * b,
        "softmax": powers,
        "softmax_sum": powers.sum(),
        **{name: reference.ACTIVATIONS[name](a) * b * np.float64(np.float32(0.7)) for name in ACTIVATIONS},
        **{f"{name} alone": reference.ACTIVATIONS[name](a) * np.float64(np.float32(0.7)) for name in ACTIVATIONS},
    }


@each_table
@each_length
def test_kernels_over_vectors_are_those_of_numpy(table: Table, n: int) -> None:
    result, expected = run_all(table, n, seed=8), expected_of(n, seed=8)
    for name, value in result.items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-6, atol=2e-6, err_msg=name)


@each_table
@each_length
@each("factor", [1.0, 30.0, 1e30, 1e-30])
def test_kernels_over_vectors_give_the_bits_of_plain_code(table: Table, n: int, factor: float) -> None:
    result, expected = run_all(table, n, 9, factor), run_all(PLAIN, n, 9, factor)
    for name, value in result.items():
        assert same(value, expected[name]), name


@each_table
def test_softmax_is_close_over_the_whole_range_of_the_exponential(table: Table) -> None:
    x = np.linspace(-87.5, 0, 100_001, dtype=np.float32)
    powers, total = table.softmax(x)
    expected = np.exp(x.astype(np.float64))
    assert (np.abs(powers / expected - 1) < 2.5e-7).all()
    assert abs(total / expected.sum() - 1) < 1e-5
    far, _ = table.softmax(np.array([0.0, -88.0, -1e30, -np.inf], np.float32))
    assert (far[1:] < 1e-37).all()
    assert far[0] == 1


@each_table
def test_a_softcap_is_close_over_the_whole_range_and_nearly_changes_nothing_near_0(table: Table) -> None:
    x = np.concatenate([np.linspace(-60, 60, 100_001), np.geomspace(1e-30, 60, 1001)]).astype(np.float32)
    expected = 5 * np.tanh(x.astype(np.float64) / 5)
    assert (np.abs(table.softcap(x, 5.0) - expected) <= 4 * 2.0**-23 * np.abs(expected)).all()
    ends = table.softcap(np.array([-np.inf, -1e30, 0, 1e30, np.inf, np.nan], np.float32), 5.0)
    assert same(ends, np.array([-5, -5, 0, 5, 5, np.nan], np.float32))


@each_table
def test_a_layer_norm_of_a_far_mean_keeps_its_digits(table: Table) -> None:
    """The variance is that of the centred values: a mean square less a squared mean would leave none of its digits."""
    x = normal(512, seed=3) + np.float32(1000)
    expected = (x - x.mean(dtype=np.float64)) / x.std(dtype=np.float64)
    out = table.layer_norm(x, np.ones(512, np.float32), np.zeros(512, np.float32), 0.0)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-4)


@each_table
@each("activation", ACTIVATIONS)
def test_activations_have_their_limits_and_pass_nan_on(table: Table, activation: str) -> None:
    gate = np.array([-1e30, -100, 0, 100, 1e30, np.nan], np.float32)
    for up in (np.ones(6, np.float32), None):
        out = table.activate(activation, gate, up, 1.0)
        assert same(out + 0.0, np.array([0, 0, 0, 100, 1e30, np.nan]))


@each_table
@each("activation", ACTIVATIONS)
def test_activations_are_close_over_the_whole_range(table: Table, activation: str) -> None:
    x = np.linspace(-12, 12, 48_001, dtype=np.float32)
    out, expected = table.activate(activation, x, None, 1.0), reference.ACTIVATIONS[activation](x.astype(np.float64))
    np.testing.assert_allclose(out, expected, rtol=4e-7, atol=4e-7)


@each_table
def test_an_empty_softmax_has_the_sum_zero(table: Table) -> None:
    assert table.softmax(np.zeros(0, np.float32))[1] == 0


def test_random_shapes_give_the_bits_of_plain_code() -> None:
    random = np.random.default_rng(10)
    for _ in range(60):
        outputs, inputs, rows = (int(random.integers(1, most)) for most in (300, 300, 20))
        precision: Precision = PRECISIONS[random.integers(4)]
        packed = pack(normal(outputs, inputs, seed=int(random.integers(1000))), precision)
        x = normal(rows, inputs, seed=int(random.integers(1000)))
        number = -(-inputs // BLOCK)
        chosen = sorted(random.choice(number, int(random.integers(number + 1)), replace=False).tolist())
        blocks = chosen if random.random() < 0.5 else None
        first, last = sorted(random.integers(0, -(-outputs // GROUP) + 1, 2).tolist())

        def run(call: Callable[..., Floats], **more: Any) -> Floats:
            return call(packed, precision, outputs, x, blocks, (first, last), **more)  # noqa: B023

        results = [run(table.multiply) for table in TABLES]
        for result in results[:-1]:
            assert same(result, results[-1]), (precision, outputs, inputs, rows, blocks, first, last)
