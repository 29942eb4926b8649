"""The next token: each filter compared with its definition, and invalid settings refused (S8)."""

import math
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adaptive_lm.runtime import UserError
from adaptive_lm.runtime.generation.sampler import Sampler, Sampling, nucleus

V = 50
LOGITS = np.random.default_rng(3).normal(scale=2, size=V).astype(np.float32)


def drawn(count: int = 4000, logits: NDArray[np.float32] = LOGITS, size: int = V, **settings: Any) -> NDArray[np.int64]:
    """Count how often each token was drawn."""
    sampler = Sampler(Sampling(**{"temperature": 1.0, "seed": 1, **settings}), size, [])
    return np.bincount([sampler.choose(logits) for _ in range(count)], minlength=V)


def probabilities(logits: NDArray[Any], keep: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    mass = np.exp(logits.astype(np.float64) - logits.max())
    mass = mass if keep is None else np.where(keep, mass, 0)
    return np.asarray(mass / mass.sum())


def far(counts: NDArray[np.int64], wanted: NDArray[np.float64]) -> float:
    """Largest distance in standard deviations of a count."""
    total = counts.sum()
    return float(np.max(np.abs(counts - total * wanted) / np.sqrt(total * wanted * (1 - wanted) + 1)))


def test_sampling_follows_the_softmax() -> None:
    assert far(drawn(), probabilities(LOGITS)) < 4


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    assert far(drawn(temperature=temperature), probabilities(LOGITS / temperature)) < 4


@pytest.mark.parametrize(
    "settings", [{"temperature": 0}, {"temperature": 1e-30}, {"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1}]
)
def test_settings_that_leave_one_token_take_the_most_probable(settings: dict[str, Any]) -> None:
    assert drawn(20, **settings).argmax() == LOGITS.argmax()
    assert (drawn(20, **settings) > 0).sum() == 1


def test_top_k_keeps_the_k_most_probable() -> None:
    keep = np.argsort(-LOGITS).argsort() < 5
    assert far(drawn(top_k=5), probabilities(LOGITS, keep)) < 4
    assert far(drawn(top_k=V + 10), probabilities(LOGITS)) < 4


def by_definition(mass: NDArray[np.float64], top_p: float) -> list[int]:
    indices: list[int] = []
    held = 0.0
    for token in np.argsort(-mass, kind="stable"):
        indices.append(int(token))
        held += mass[token]
        if held >= top_p * mass.sum():
            break
    return sorted(indices)


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.9, 0.999999, 1.0])
@pytest.mark.parametrize("size", [1, 50, 300, 5000])
@pytest.mark.parametrize("flat", [False, True])
def test_the_nucleus_is_the_fewest_that_hold_the_mass(size: int, top_p: float, flat: bool) -> None:
    mass = np.random.default_rng(size).dirichlet(np.full(size, 1000.0 if flat else 0.05))
    assert nucleus(mass, top_p).tolist() == by_definition(mass, top_p)


def test_top_p_draws_from_the_nucleus() -> None:
    keep = np.isin(np.arange(V), by_definition(probabilities(LOGITS), 0.7))
    assert far(drawn(top_p=0.7), probabilities(LOGITS, keep)) < 4


def test_min_p_drops_what_is_much_rarer_than_the_first() -> None:
    mass = probabilities(LOGITS)
    assert far(drawn(min_p=0.1), probabilities(LOGITS, mass >= 0.1 * mass.max())) < 4


def test_the_filters_act_one_on_what_the_other_left() -> None:
    mass = probabilities(LOGITS)
    keep = np.argsort(-LOGITS).argsort() < 10
    keep[[token for token in range(V) if token not in by_definition(np.where(keep, mass, 0), 0.8)]] = False
    keep &= mass >= 0.2 * mass.max()
    assert far(drawn(top_k=10, top_p=0.8, min_p=0.2), probabilities(LOGITS, keep)) < 4


def test_a_repetition_penalty_lowers_seen_tokens_whatever_their_sign() -> None:
    logits = np.float32([2, 1.9, -1, -1.1])
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=1.5), 4, [0])
    assert sampler.choose(logits) == 1  # 2 / 1.5 < 1.9
    assert sampler.choose(logits) == 0  # 1.33 > 1.27: both were seen now
    assert Sampler(Sampling(temperature=0, repetition_penalty=1.5), 4, [2]).choose(np.float32([-9, -9, -1, -1.1])) == 3


def test_padding_of_the_vocabulary_is_never_chosen() -> None:
    logits = LOGITS.copy()
    logits[40:] = 100
    assert drawn(200, logits, size=40)[40:].sum() == 0
    assert Sampler(Sampling(temperature=0), 40, []).choose(logits) < 40


def test_the_same_seed_draws_the_same_tokens() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1, seed=seed), V, [])
        return [sampler.choose(LOGITS) for _ in range(50)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)
    assert draw(None) != draw(None)


def test_a_drawn_seed_can_be_given_again() -> None:
    first = Sampler(Sampling(temperature=1), V, [])
    again = Sampler(Sampling(temperature=1, seed=first.seed), V, [])
    assert [first.choose(LOGITS) for _ in range(20)] == [again.choose(LOGITS) for _ in range(20)]


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_a_defect(temperature: float, bad: float) -> None:
    logits = LOGITS.copy()
    logits[7] = bad
    with pytest.raises(ArithmeticError, match="not finite"):
        Sampler(Sampling(temperature=temperature), V, []).choose(logits)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (math.nan, math.inf, -0.1, 1e300, 10**400)),
        *(("top_k", value) for value in (0, -1, 2.5)),
        *(("top_p", value) for value in (0, 0.0, 1.1, math.nan, -1, -1e-320)),
        *(("min_p", value) for value in (-0.1, 1.1, math.nan)),
        *(("repetition_penalty", value) for value in (0, -1, math.nan, math.inf, 1e-40, 1e-320, 1e40, 10**400)),
        *(("seed", value) for value in (-1, 0.5, 2**64, -(10**400))),
    ],
)
def test_a_setting_that_makes_no_sense_says_what_would(name: str, value: float) -> None:
    with pytest.raises(UserError, match=re.escape(f"found {name} {value}, expected")) as error:
        Sampling(**{name: value})  # type: ignore[arg-type]
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 5e-324},
        {"temperature": 1e-320},
        {"temperature": 1e6},
        {"top_k": 10**30},
        {"top_p": 5e-324},
        {"top_p": 1e-320, "top_k": 3},
        {"min_p": 5e-324},
        {"repetition_penalty": 0.01},
        {"repetition_penalty": 100.0},
        {"seed": 2**64 - 1},
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e30])
def test_the_extremes_of_what_is_allowed_choose_a_token_without_a_warning(
    settings: dict[str, Any], scale: float
) -> None:
    """Warnings are errors in these tests."""
    sampler = Sampler(Sampling(**{"temperature": 1.0, "seed": 1, **settings}), V, [0, 1, 2])
    logits = LOGITS * np.float32(scale)
    logits[5] = -np.inf  # as a mask leaves it
    tokens = [sampler.choose(logits) for _ in range(20)]
    assert 5 not in tokens
    if settings.get("temperature", 1) < 1e-300:
        assert set(tokens) == {int(LOGITS.argmax())}
