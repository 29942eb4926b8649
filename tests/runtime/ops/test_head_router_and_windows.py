"""The operators HeadRouter and Windows against the plain model of `tests/reference`."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from reference.attention import Attention
from reference.routing import rms_norm
from support.cases import each
from support.operators.kernels import LIBRARY

if not LIBRARY.is_file():
    pytest.skip(f"{LIBRARY.name} is not built: no C++ compiler at installation", allow_module_level=True)

from support.graphs.one_operator import run

Array = NDArray[Any]
D, LAYER, EPS = 48, 1, 1e-5
ROUTINGS = ("top_k", "top_p", "adaptive")


def normal(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


NORMS: dict[str, dict[str, Array]] = {
    "rms": {"norm": 1 + normal(D, seed=2) / 4},
    "layer": {"norm": 1 + normal(D, seed=2) / 4, "norm_bias": normal(D, seed=12) / 4},
    "none": {},
}
"""The norm of x as inputs of an operator."""


def normed(inputs: dict[str, Array], row: int) -> Array:
    """Return a row of x as the router reads it."""
    x, bias = inputs["x"][row].astype(np.float64), inputs.get("norm_bias")
    if "norm" not in inputs:
        return x
    plain = rms_norm(x if bias is None else x - x.mean(), EPS, inputs["norm"])
    return np.asarray(plain if bias is None else plain + bias)


class Heads:
    """A random router of heads, as inputs of the operator and as the plain model."""

    def __init__(
        self,
        routing: str,
        heads: int = 8,
        shared: int = 0,
        per_token: bool = False,
        mean: float = 5.0,
        most: int = 0,
    ) -> None:
        self.routing, self.heads, self.shared, self.mean = routing, heads, shared, mean
        self.least, self.most = 2, most or heads
        predicts = per_token or routing == "adaptive"
        self.x = normal(12, D, seed=1)
        self.inputs: dict[str, Array] = {
            "x": self.x,
            "norm": 1 + normal(D, seed=2) / 4,
            "weight": normal(heads, D, seed=3) / D**0.5,
        }
        if shared:
            self.inputs["balance"] = normal(2, D, seed=4) / D**0.5
        if predicts:
            self.inputs |= {"per_token_weight": normal(D, seed=5) / D**0.5, "per_token_bias": normal(1, seed=6)}
        self.per_token = per_token

    def run(self, levels: Array | None = None, **changes: Array) -> tuple[Array, ...]:
        inputs = dict(self.inputs)
        if levels is not None:
            inputs["head_top_p"] = np.stack([np.full_like(levels, 0.5), levels]).astype(np.float32)  # (L, B)
        return run(
            "HeadRouter", inputs | changes, layer=LAYER, eps=EPS,
            routing=ROUTINGS.index(self.routing), shared_heads=self.shared, heads_per_token=self.mean,
            least_heads=self.least, most_heads=self.most, reach=1.5,
        )  # fmt: skip

    def expected(self, row: int, level: float) -> dict[int, float]:
        """Return the heads of a token and their factors."""
        heads = SimpleNamespace(
            routing=self.routing, shared_heads=self.shared, per_token=self.per_token, per_token_reach=1.5
        )
        config: Any = SimpleNamespace(
            num_heads=self.heads,
            heads=heads,
            heads_per_token=self.mean,
            least_heads=self.least,
            most_heads=self.most,
        )
        name = f"layers.{LAYER}.attention.head_router"
        inputs = {key: value.astype(np.float64) for key, value in self.inputs.items()}
        weights = {f"{name}.weight": inputs["weight"]}
        if self.shared:
            weights[f"{name}.balance"] = inputs["balance"]
        if "per_token_weight" in inputs:
            weights |= {f"{name}.per_token.weight": inputs["per_token_weight"]}
            weights |= {f"{name}.per_token.bias": inputs["per_token_bias"][0]}
        result: Any = SimpleNamespace(margins=defaultdict(lambda: np.zeros((1, 1, 1))))
        plain = Attention(weights, config, LAYER, level, np.float64)
        return plain.heads(normed(inputs, row), result, (0, 0, 0))

    def check(self, selected: Array, head_weights: Array, row: int, level: float) -> None:
        expected = self.expected(row, level)
        wanted = np.zeros(self.heads)
        wanted[list(expected)] = list(expected.values())
        assert set(np.flatnonzero(selected)) == set(expected)
        np.testing.assert_allclose(head_weights, wanted, rtol=1e-5, atol=1e-6)


@each("shared", [0, 1, 3])
@each(("heads", "mean"), [(8, 5.0), (4, 4.0), (17, 9.0)])
def test_top_k_heads_are_those_of_the_plain_model(shared: int, heads: int, mean: float) -> None:
    router = Heads("top_k", heads, shared, mean=mean)
    selected, head_weights = router.run()
    for row in range(len(router.x)):
        router.check(selected[row], head_weights[row], row, 1.0)
    assert (selected.sum(1) == mean).all()


@each("norm", ["layer", "none"])
@each("routing", ROUTINGS)
def test_heads_are_chosen_from_a_state_with_a_layer_norm_or_without_a_norm(routing: str, norm: str) -> None:
    router = Heads(routing, per_token=True)
    del router.inputs["norm"]
    router.inputs |= NORMS[norm]
    levels = np.linspace(0.2, 0.8, len(router.x), dtype=np.float32)
    selected, head_weights = router.run(*([] if routing == "top_k" else [levels]))
    for row in range(len(router.x)):
        router.check(selected[row], head_weights[row], row, float(levels[row]))


@each("per_token", [False, True])
@each("shared", [0, 1, 3])
def test_top_p_heads_are_those_of_the_plain_model(shared: int, per_token: bool) -> None:
    router = Heads("top_p", shared=shared, per_token=per_token, mean=5.5)
    levels = np.array([0.3, 0.9, 1.0], np.float32)  # of three sequences with four tokens each
    selected, head_weights = router.run(levels)
    for row in range(len(router.x)):
        router.check(selected[row], head_weights[row], row, float(levels[row // 4]))
    assert len(set(selected.sum(1))) > 3


@pytest.mark.parametrize("most", [8, 5])
def test_adaptive_heads_are_those_of_the_plain_model(most: int) -> None:
    router = Heads("adaptive", most=most)
    levels = np.array([0.1, 0.4, 1.0], np.float32)
    selected, head_weights = router.run(levels)
    for row in range(len(router.x)):
        router.check(selected[row], head_weights[row], row, float(levels[row // 4]))
    assert (selected[8:].sum(1) == most).all()
    assert len(set(selected.sum(1))) > 2


@pytest.mark.parametrize("routing", ["top_p", "adaptive"])
def test_a_level_of_1_keeps_everything_before_any_shift(routing: str) -> None:
    router = Heads(routing, per_token=routing == "top_p")
    selected, _ = router.run(np.ones(1), per_token_bias=np.array([-50.0 if routing == "top_p" else 50.0], np.float32))
    assert selected.all()
    selected, _ = router.run(np.zeros(1))
    assert (selected.sum(1) == (1 if routing == "top_p" else router.least)).all()


def test_equal_heads_are_taken_in_order() -> None:
    router = Heads("top_k", mean=3.0)
    selected, head_weights = router.run(weight=np.zeros((8, D), np.float32))
    np.testing.assert_array_equal(selected, np.arange(8) < np.full((12, 1), 3))
    np.testing.assert_array_equal(head_weights, selected.astype(np.float32))


def test_tokens_that_skip_choose_no_heads() -> None:
    router = Heads("top_p", shared=1)
    every, weights = router.run(np.array([0.8]))
    runs = np.arange(12)[:, None] % 3 > 0
    selected, head_weights = router.run(np.array([0.8]), runs=runs)
    np.testing.assert_array_equal(selected, every & runs)
    np.testing.assert_array_equal(head_weights, weights * runs)


def test_a_token_that_is_no_number_chooses_all_heads() -> None:
    router = Heads("top_p")
    x = router.x.copy()
    x[3, 5] = np.nan
    selected, head_weights = router.run(np.array([0.5]), x=x)
    assert selected[3].all()
    assert np.isnan(head_weights[3]).all()
    others = np.arange(12) != 3
    np.testing.assert_array_equal(head_weights[others], router.run(np.array([0.5]))[1][others])


@each(
    ("router", "changes", "message"),
    [
        (Heads("top_k"), {"weight": (8, 47)}, "weight has shape"),
        (Heads("top_k", shared=2), {"weight": (2, D)}, "weight has 2 heads, expected more than the 2 shared ones"),
        (Heads("top_k", shared=2), {"balance": (3, D)}, "balance has shape"),
        (Heads("top_k"), {"balance": (2, D)}, "balance is given, but shared_heads is 0"),
        (Heads("top_p"), {"head_top_p": (1, 1)}, "head_top_p has 1 layers"),
        (Heads("top_p"), {"head_top_p": (2, 5)}, "head_top_p is for 5 sequences"),
        (Heads("top_p", per_token=True), {"per_token_bias": (2,)}, "per_token_bias has shape"),
        (Heads("adaptive"), {"weight": (6, D)}, "most_heads of at most 6"),
        (Heads("top_k"), {"runs": (12, 2)}, "runs has shape"),
        (Heads("top_k"), {"norm": (47,)}, "norm has shape"),
    ],
)
def test_wrong_inputs_of_a_head_router_are_refused(
    router: Heads, changes: dict[str, tuple[int, ...]], message: str
) -> None:
    arrays = {key: np.zeros(shape, bool if key == "runs" else np.float32) for key, shape in changes.items()}
    with pytest.raises(InvalidArgument, match=message):
        router.run(None if router.routing == "top_k" else np.ones(1), **arrays)


class Windows:
    """The windows of a layer: learned, or a table by place."""

    def __init__(self, learned: bool) -> None:
        self.x = normal(2, 9, D, seed=1)
        self.levels = 4 + np.arange(15) * (32 - 4) // 14
        self.by_place = np.clip(np.ceil(0.5 * np.arange(1, 41)), 2, 12).astype(np.int64)
        self.learned = learned
        self.inputs: dict[str, Array] = {
            "x": self.x.reshape(-1, D),
            "norm": 1 + normal(D, seed=2) / 4,
            "slots": np.arange(2),
            "lengths": np.array([[0, 0], [11, 5]]),
        }
        if learned:
            bias = np.array([0.3], np.float32)
            self.inputs |= {"weight": normal(D, seed=3) / D**0.5, "bias": bias, "levels": self.levels}
        else:
            self.inputs["by_place"] = self.by_place

    def run(self, policy: int = 0, **changes: Array) -> Array:
        (windows,) = run("Windows", self.inputs | changes, layer=LAYER, eps=EPS, policy=policy)
        return windows

    def expected(self, row: int, place: int) -> int:
        """Return the window of a token at a place."""
        attention = SimpleNamespace(
            window_kind="learned" if self.learned else "length",
            window_share=0.5,
            window_least=4 if self.learned else 2,
        )
        config: Any = SimpleNamespace(attention=attention, window_of=lambda _: 32 if self.learned else 12)
        router = f"layers.{LAYER}.attention.window_router"
        inputs = {key: value.astype(np.float64) for key, value in self.inputs.items()}
        weights = {f"{router}.weight": inputs["weight"], f"{router}.bias": inputs["bias"][0]} if self.learned else {}
        result: Any = SimpleNamespace(margins=defaultdict(lambda: np.zeros((1, 1, 1))))
        plain = Attention(weights, config, LAYER, 1.0, np.float64)
        return plain.window(normed(inputs, row), place, result, (0, 0, 0))


@each("policy", ["every", "none", "project"])
@each("learned", [False, True])
def test_windows_are_those_of_the_plain_model(learned: bool, policy: str) -> None:
    router = Windows(learned)
    runs = np.random.default_rng(3).random((2, 9)) < (0.6 if policy != "every" else 2)
    changes = {} if policy == "every" else {"runs": runs.reshape(-1, 1)}
    windows = router.run(("every", "none", "project").index(policy), **changes).reshape(2, 9)
    for b, length in enumerate((11, 5)):
        for t in range(9):
            place = length + (runs[b, :t].sum() if policy == "none" else t)
            assert windows[b, t] == (router.expected(9 * b + t, int(place)) if runs[b, t] else 0)
    assert len(np.unique(windows)) > 3


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_windows_are_learned_from_a_state_with_a_layer_norm_or_without_a_norm(norm: str) -> None:
    router = Windows(learned=True)
    del router.inputs["norm"]
    router.inputs |= NORMS[norm]
    windows = router.run().reshape(2, 9)
    for b, length in enumerate((11, 5)):
        assert [router.expected(9 * b + t, length + t) for t in range(9)] == windows[b].tolist()
    assert len(np.unique(windows)) > 3


@pytest.mark.parametrize(("score", "level"), [(-100.0, 0), (0.0, 7), (100.0, 14), (np.nan, 0)])
def test_a_score_at_either_end_has_a_level(score: float, level: int) -> None:
    router = Windows(learned=True)
    zeros = {"weight": np.zeros(D, np.float32), "bias": np.array([score], np.float32)}
    np.testing.assert_array_equal(router.run(**zeros), np.full(18, router.levels[level]))


@each(
    ("changes", "message"),
    [
        ({"by_place": np.arange(15)}, "by_place has 15 places, expected more than 15"),
        ({"levels": np.arange(15)}, "expected either the inputs weight, bias and levels, or by_place"),
        ({"lengths": np.array([[0, 0]])}, "lengths has 1 layers, expected more than 1"),
        ({"lengths": np.array([[0], [0]])}, "slots is 1 for row 1, expected 0 to 0"),
        ({"slots": np.array([0, -1])}, "slots is -1 for row 1, expected 0 to 1"),
        ({"slots": np.zeros(4, np.int64)}, "slots has 4 rows, which 18 tokens cannot be divided into"),
        ({"runs": np.zeros((17, 1), bool)}, "runs has shape"),
        ({"norm": np.zeros(D + 1, np.float32)}, "norm has shape"),
    ],
)
def test_wrong_inputs_of_windows_are_refused(changes: dict[str, Array], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Windows(learned=False).run(**changes)
