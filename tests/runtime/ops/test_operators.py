"""Each operator but FeedForward in ONNX Runtime against plain numpy."""

import numpy as np
import pytest
from reference.routing import confidence, rms_norm, sigmoid
from support.cases import each
from support.operators.kernels import LIBRARY

from adaptive_lm.runtime.ops.layout import PRECISIONS, Precision, pack, rounded

if not LIBRARY.is_file():
    pytest.skip(f"{LIBRARY.name} is not built: no C++ compiler at installation", allow_module_level=True)

from support.graphs.one_operator import bytes_read, run
from support.operators.operator_formulas import Array, close, normal, product, shifted

EPS = 1e-5
CRITERIA = ("top_prob", "margin", "entropy", "router")
each_precision = each("precision", PRECISIONS)


def normed(row: Array, norm: Array, bias: Array | None) -> Array:
    """Normalise a state (D,) by RMSNorm, with a bias by LayerNorm."""
    return rms_norm(row, EPS, norm) if bias is None else rms_norm(row - row.mean(), EPS, norm) + bias


def capped(logits: Array, softcap: float) -> Array:
    return softcap * np.tanh(logits / softcap) if softcap else logits


# Embedding


@each_precision
@each(("vocab", "dim"), [(130, 40), (64, 32), (1, 1)])
def test_an_embedding_is_a_row_of_the_packed_table(precision: Precision, vocab: int, dim: int) -> None:
    table, ids = normal(vocab, dim), np.random.default_rng(1).integers(0, vocab, (2, 7))
    attributes = {"scale": 1.0, "dim": dim, "vocab": vocab, "precision": PRECISIONS.index(precision)}
    (x,) = run("Embedding", {"ids": ids, "table": pack(table, precision)}, **attributes)
    np.testing.assert_array_equal(x, rounded(table, precision)[ids.reshape(-1)])


def test_a_long_prompt_is_embedded_by_two_threads_as_by_one() -> None:
    ids = np.random.default_rng(1).integers(0, 100, (1, 500))
    inputs = {"ids": ids, "table": pack(normal(100, 64), "int8")}
    one, two = (run("Embedding", inputs, threads, scale=1.0, dim=64, vocab=100, precision=2)[0] for threads in (1, 2))
    np.testing.assert_array_equal(one, two)


@each("learned", [False, True])
@each_precision
def test_an_embedding_is_scaled_and_learned_positions_are_added(precision: Precision, learned: bool) -> None:
    """A scale alone is exact: one multiplication, rounded once."""
    table, vectors, random = normal(70, 40), normal(9, 40, seed=2), np.random.default_rng(1)
    ids, places = random.integers(0, 70, (2, 7)), random.integers(0, 9, (2, 7))
    inputs = {"ids": ids, "table": pack(table, precision)}
    inputs |= {"positions": places, "learned_positions": vectors} if learned else {}
    (x,) = run("Embedding", inputs, scale=1.7, dim=40, vocab=70, precision=PRECISIONS.index(precision))
    scaled = np.float32(1.7) * rounded(table, precision)[ids.reshape(-1)]
    if learned:
        np.testing.assert_allclose(x, scaled + vectors[places.reshape(-1)], rtol=0, atol=1e-6)
    else:
        np.testing.assert_array_equal(x, scaled)


# DepthRouter


def depth_inputs(per_token: bool) -> dict[str, Array]:
    inputs = {
        "x": normal(6, 40, seed=1),
        "alive": np.array([[1], [1], [0], [1], [1], [0]], bool),
        "depth_threshold": np.array([[0.9, 0.9, 0.9], [0.6, 0.0, 0.7]], np.float32),
        "weight": normal(40, seed=2) / 4,
        "bias": np.array([0.1], np.float32),
    }
    shift = {"per_token_weight": normal(40, seed=3) / 4, "per_token_bias": np.array([-0.2], np.float32)}
    return inputs | (shift if per_token else {})


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("left", [False, True])
def test_the_depth_router_compares_a_score_with_the_threshold(per_token: bool, left: bool) -> None:
    inputs = depth_inputs(per_token)
    if not left:
        del inputs["alive"]
    runs, gate = run("DepthRouter", inputs, layer=1, eps=EPS, reach=1.5)
    for n, x in enumerate(inputs["x"].astype(np.float64)):
        z, level = rms_norm(x, EPS, None), float(inputs["depth_threshold"][1, n // 2])
        score = sigmoid(inputs["weight"] @ z + inputs["bias"][0])
        limit = level
        if per_token and level > 0:
            limit = shifted(level, inputs["per_token_weight"] @ z + inputs["per_token_bias"][0], 1.5)
        here = not left or inputs["alive"][n, 0]
        assert runs[n, 0] == (here and (score >= limit or level <= 0))
        if here:
            assert gate[n, 0] == pytest.approx(2 * score, rel=1e-6)
    assert runs.any()
    assert not runs.all()


def test_a_depth_threshold_of_0_runs_every_token_whatever_its_score() -> None:
    inputs = depth_inputs(True) | {"depth_threshold": np.zeros((1, 6), np.float32), "bias": np.array([-1e4], "f")}
    del inputs["alive"]
    runs, gate = run("DepthRouter", inputs, layer=0, eps=EPS, reach=1.5)
    assert runs.all()
    assert not gate.any()
    inputs["x"][1, 0] = np.nan
    assert run("DepthRouter", inputs, layer=0, eps=EPS, reach=1.5)[0].all()


# Exit


@each_precision
@each("criterion", CRITERIA)
@each(("bias", "softcap"), [(False, 0.0), (True, 3.0)])
def test_tokens_leave_where_the_confidence_is_above_the_threshold(
    precision: Precision, criterion: str, bias: bool, softcap: float
) -> None:
    vocab, dim, tokens = 130, 40, 70
    x, norm, head = normal(tokens, dim, seed=1), 1 + normal(dim, seed=2) / 4, normal(vocab, dim, seed=3) / 3
    scorer, offset = normal(dim, seed=4) / 4, np.array([0.2], np.float32)
    norm_bias = normal(dim, seed=6) / 4 if bias else None
    inputs = {
        "x": x,
        "alive": np.arange(tokens)[:, None] % 3 != 0,
        "exit_layer": np.where(np.arange(tokens)[:, None] % 3 != 0, -1, 1),
        "norm": norm,
    }
    inputs |= {"norm_bias": norm_bias} if norm_bias is not None else {}
    inputs |= {"weight": scorer, "bias": offset} if criterion == "router" else {"head": pack(head, precision)}
    sure = []
    for row in x.astype(np.float64):
        z = normed(row, norm, norm_bias)
        logits = capped(product(head, z, precision), softcap)
        sure.append(sigmoid(scorer @ z + offset[0]) if criterion == "router" else confidence(criterion, logits))
    middle = np.sort(np.array(sure)[inputs["alive"][:, 0]])
    threshold = middle[len(middle) // 2 - 1 : len(middle) // 2 + 1].mean()
    inputs["exit_threshold"] = np.array([[0, 0], [0, 0], [threshold, 1]], np.float32)
    attributes = {"layer": 2, "eps": EPS, "criterion": CRITERIA.index(criterion), "softcap": softcap, "vocab": vocab}
    alive, exit_layer = run("Exit", inputs, precision=PRECISIONS.index(precision), **attributes)
    leaves = inputs["alive"][:, 0] & (np.array(sure) > threshold) & (np.arange(tokens) < 35)  # the others' threshold: 1
    np.testing.assert_array_equal(alive[:, 0], inputs["alive"][:, 0] & ~leaves)
    np.testing.assert_array_equal(exit_layer[:, 0], np.where(leaves, 2, inputs["exit_layer"][:, 0]))
    assert leaves.any()


def test_an_exit_without_earlier_exits_asks_every_token_and_at_a_threshold_of_1_reads_no_head() -> None:
    inputs = {
        "x": normal(3, 32),
        "norm": np.ones(32, np.float32),
        "head": pack(normal(70, 32), "int8"),
        "exit_threshold": np.zeros((1, 3), np.float32),
    }
    attributes = {"layer": 0, "eps": EPS, "criterion": 0, "softcap": 0.0, "vocab": 70, "precision": 2}
    alive, exit_layer = run("Exit", inputs, **attributes)
    assert not alive.any()
    assert not exit_layer.any()
    before = bytes_read()
    alive, exit_layer = run("Exit", inputs | {"exit_threshold": np.ones((1, 3), np.float32)}, **attributes)
    assert alive.all()
    assert (exit_layer == -1).all()
    assert bytes_read() == before


# Logits


@each_precision
@each(("bias", "softcap"), [(False, 0.0), (True, 3.0)])
@each("wanted", [[], [5], [0, 2, 3], [4, 1, 1]])
def test_logits_are_those_of_the_tokens_that_are_named(
    precision: Precision, wanted: list[int], bias: bool, softcap: float
) -> None:
    dim, vocab = 40, 130
    x, norm, head = normal(6, dim, seed=1), 1 + normal(dim, seed=2) / 4, normal(vocab, dim, seed=3)
    inputs = {
        "x": x,
        "norm": norm,
        "head": pack(head, precision),
        "logit_rows": np.array(wanted, np.int64),
    }
    norm_bias = normal(dim, seed=6) / 4 if bias else None
    inputs |= {"norm_bias": norm_bias} if norm_bias is not None else {}
    one, two = (
        run("Logits", inputs, threads, eps=EPS, softcap=softcap, vocab=vocab, precision=PRECISIONS.index(precision))[0]
        for threads in (1, 2)
    )
    np.testing.assert_array_equal(one, two)
    assert one.shape == (len(wanted), vocab)
    if wanted:
        normed_rows = [normed(row.astype(np.float64), norm, norm_bias) for row in x]
        expected = [capped(product(head, row, precision), softcap) for row in normed_rows]
        close(one, np.array(expected)[wanted], precision)
