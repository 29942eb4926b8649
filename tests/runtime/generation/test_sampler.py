"""The next token: each filter compared with its definition, and invalid settings refused (S8)."""

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.cases import each

from adaptive_lm.runtime import UserError
from adaptive_lm.runtime.generation.sampling.sampler import Sampler, Sampling

V = 50
LOGITS = np.random.default_rng(3).normal(scale=2, size=V).astype(np.float32)


def drawn(count: int = 4000, logits: NDArray[np.float32] = LOGITS, size: int = V, **settings: Any) -> NDArray[np.int64]:
    """Count how often each token was drawn."""
    sampler = Sampler(Sampling(**{"temperature": 1.0, "seed": 1, **settings}), size, [])
    return np.bincount([sampler.choose(logits) for _ in range(count)], minlength=V)


def far(counts: NDArray[np.int64], wanted: NDArray[np.float64]) -> float:
    """Largest distance in standard deviations of a count."""
    total = counts.sum()
    return float(np.max(np.abs(counts - total * wanted) / np.sqrt(total * wanted * (1 - wanted) + 1)))


def test_sampling_follows_the_softmax() -> None:
    assert far(drawn(), by_definition(LOGITS)) < 4


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    assert far(drawn(temperature=temperature), by_definition(LOGITS / np.float32(temperature))) < 4


@pytest.mark.parametrize(
    "settings", [{"temperature": 0}, {"temperature": 1e-30}, {"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1}]
)
def test_settings_that_leave_one_token_take_the_most_probable(settings: dict[str, Any]) -> None:
    assert drawn(20, **settings).argmax() == LOGITS.argmax()
    assert (drawn(20, **settings) > 0).sum() == 1


def test_top_k_beyond_the_vocabulary_keeps_all() -> None:
    assert far(drawn(top_k=V + 10), by_definition(LOGITS)) < 4


def by_definition(
    logits: NDArray[np.float32], top_k: int | None = None, top_p: float = 1.0, min_p: float = 0.0
) -> NDArray[np.float64]:
    """Return the probability of each token, in float64, with a sort."""
    mass = np.exp(logits.astype(np.float64) - logits.max())
    order = np.argsort(-logits, kind="stable")
    mass[order[top_k:] if top_k else []] = 0
    if top_p < 1:
        before = mass[order].cumsum() - mass[order]
        mass[order[before >= top_p * mass.sum()]] = 0
    mass[mass < min_p] = 0  # the largest is 1
    return np.asarray(mass / mass.sum())


def chi_square_bound(freedom: int) -> float:
    """Return the value that chi-square exceeds once in a million times (Wilson and Hilferty 1931)."""
    spread = 2 / (9 * freedom)
    return freedom * float(1 - spread + 4.7534 * math.sqrt(spread)) ** 3


@each("top_k", [None, 20])
@each("top_p", [1.0, 0.9, 0.3])
@each("min_p", [0.0, 0.02])
@each("penalty", [1.0, 1.3])
@each("scale", [1.0, 1e-3, 0.0])
def test_every_combination_of_filters_gives_each_token_its_share(
    scale: float, penalty: float, min_p: float, top_p: float, top_k: int | None
) -> None:
    logits = LOGITS * np.float32(scale)
    settings = Sampling(temperature=1, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty, seed=2)
    sampler = Sampler(settings, V, list(range(V)))  # all are seen, so that the penalty stays the same
    penalised = np.where(logits > 0, logits / np.float32(penalty), logits * np.float32(penalty))
    wanted = by_definition(penalised, top_k, top_p, min_p)
    counts = np.bincount([sampler.choose(logits) for _ in range(2000)], minlength=V)
    assert counts[wanted == 0].sum() == 0
    kept = 2000 * wanted[wanted > 0]
    if len(kept) > 1:
        assert ((counts[wanted > 0] - kept) ** 2 / kept).sum() < chi_square_bound(len(kept) - 1)


@each("scale", [1.0, 1e-3, 0.0])
@each("settings", [{}, {"top_k": 3000}, {"top_p": 0.9}, {"top_p": 0.1}, {"top_k": 3000, "top_p": 0.5}])
def test_a_large_vocabulary_is_drawn_from_by_its_shares(scale: float, settings: dict[str, Any]) -> None:
    """In the order of their ranks, the tokens fall into 20 groups of equal share."""
    logits = (np.random.default_rng(4).normal(size=32000) * scale).astype(np.float32)
    wanted = by_definition(logits, **settings)
    order = np.argsort(-logits, kind="stable")
    cumulative = wanted[order].cumsum()
    group = np.empty(32000, np.int64)
    group[order] = np.minimum((cumulative * 20).astype(np.int64), 19)
    shares = np.bincount(group, weights=wanted, minlength=20)
    sampler = Sampler(Sampling(temperature=1, seed=3, **settings), 32000, [])
    tokens = np.array([sampler.choose(logits) for _ in range(1000)])
    assert wanted[tokens].min() > 0
    counts = np.bincount(group[tokens], minlength=20)
    assert ((counts - 1000 * shares) ** 2 / (1000 * shares)).sum() < chi_square_bound(19)


@each("top_p", [1e-9, 0.01, 0.3, 0.9, 0.999])
@each("size", [1, 50, 300, 5000])
@each("scale", [5.0, 1e-2, 0.0])
def test_the_nucleus_is_the_fewest_that_hold_the_mass(size: int, top_p: float, scale: float) -> None:
    """All of them and no other are drawn, where each has a share that is drawn."""
    logits = (np.random.default_rng(size).normal(size=size) * scale).astype(np.float32)
    wanted = by_definition(logits, top_p=top_p)
    sampler = Sampler(Sampling(temperature=1, top_p=top_p, seed=1), size, [])
    tokens = {sampler.choose(logits) for _ in range(1000)}
    assert tokens <= set(np.flatnonzero(wanted))
    assert tokens >= set(np.flatnonzero(wanted > 0.02))


@pytest.mark.parametrize("count", [1, 2, 49])
def test_of_equal_logits_top_k_keeps_the_lower_ids(count: int) -> None:
    assert set(np.flatnonzero(drawn(1000, np.zeros(V, np.float32), top_k=count))) == set(range(count))


def test_a_repetition_penalty_lowers_seen_tokens_whatever_their_sign() -> None:
    logits = np.float32([2, 1.9, -1, -1.1])
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=1.5), 4, [0])
    assert sampler.choose(logits) == 1  # 2 / 1.5 < 1.9
    assert sampler.choose(logits) == 0  # 1.33 > 1.27: both were seen now
    assert Sampler(Sampling(temperature=0, repetition_penalty=1.5), 4, [2]).choose(np.float32([-9, -9, -1, -1.1])) == 3


class Only:
    """A mask that always allows the same tokens, and records those that were chosen."""

    def __init__(self, tokens: Iterable[int], size: int = V) -> None:
        bits = np.zeros(32 * (size // 32 + 1), np.uint8)
        bits[list(tokens)] = 1
        self._words = np.packbits(bits, bitorder="little").view(np.uint32)
        self.accepted: list[int] = []

    ended = False

    def allowed(self) -> NDArray[np.uint32]:
        return self._words

    def accept(self, token: int) -> None:
        self.accepted.append(token)


@each("compiled", [True, False])
@each("settings", [{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.05}, {"top_k": 8, "top_p": 0.9, "min_p": 0.02}])
def test_under_a_mask_the_allowed_tokens_keep_their_shares(settings: dict[str, Any], *, compiled: bool) -> None:
    """The filters act on what is allowed; the biases before."""
    allowed, bias = [0, 3, 4, 11, 12, 13, 20, 31, 32, 33, 40, 49], {3: 1.5, 12: -2.0, 7: 100}
    mask = Only(allowed)
    sampler = Sampler(Sampling(temperature=1, seed=4, logit_bias=bias, **settings), V, [], mask=mask, compiled=compiled)
    shifted = LOGITS.copy()
    shifted[list(bias)] += np.float32(list(bias.values()))
    masked = np.full(V, -np.inf, np.float32)
    masked[allowed] = shifted[allowed]
    wanted = by_definition(masked, **settings)
    tokens = [sampler.choose(LOGITS) for _ in range(3000)]
    assert mask.accepted == tokens
    counts = np.bincount(tokens, minlength=V)
    assert counts[wanted == 0].sum() == 0
    kept = 3000 * wanted[wanted > 0]
    assert ((counts[wanted > 0] - kept) ** 2 / kept).sum() < chi_square_bound(len(kept) - 1)


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_mask_that_allows_nothing_is_an_error_of_the_grammar(temperature: float) -> None:
    sampler = Sampler(Sampling(temperature=temperature), V, [], mask=Only([]))
    with pytest.raises(ArithmeticError, match="the grammar allows no token"):
        sampler.choose(LOGITS)


@pytest.mark.parametrize("compiled", [True, False])
def test_penalties_of_the_text_give_each_token_the_share_of_openais_definition(*, compiled: bool) -> None:
    """The logit of a token falls by frequency * count + presence * (count > 0); the prompt does not count."""
    text = [int(LOGITS.argmax()), 7, 7, 3, 7, int(LOGITS.argmax())]
    counts = np.bincount(text, minlength=V)
    wanted = by_definition((LOGITS - 0.4 * counts - 0.9 * (counts > 0)).astype(np.float32))
    tokens = []
    for seed in range(3000):
        settings = Sampling(temperature=1, frequency_penalty=0.4, presence_penalty=0.9, seed=seed)
        sampler = Sampler(settings, V, [1, 2, 3], compiled=compiled)
        for token in text:
            certain = np.zeros(V, np.float32)
            certain[token] = 1000
            assert sampler.choose(certain) == token
        tokens.append(sampler.choose(LOGITS))
    kept = 3000 * wanted
    assert ((np.bincount(tokens, minlength=V) - kept) ** 2 / kept).sum() < chi_square_bound(V - 1)


def test_a_text_penalty_counts_generated_tokens_only() -> None:
    logits = np.float32([2, 1.5, 1.2, -5])
    sampler = Sampler(Sampling(temperature=0, presence_penalty=1), 4, [0, 0, 0])
    assert [sampler.choose(logits) for _ in range(4)] == [0, 1, 2, 0]  # 2, 1.5, 1.2, then 2 - 1 = 1 once more
    sampler = Sampler(Sampling(temperature=0, frequency_penalty=0.3), 4, [0])
    assert [sampler.choose(logits) for _ in range(5)] == [0, 0, 1, 0, 1]  # of 2, 1.7, 1.5, 1.4, 1.2 (the lower id)


def test_a_negative_text_penalty_repeats() -> None:
    sampler = Sampler(Sampling(temperature=1, frequency_penalty=-2, seed=1), V, [])
    tokens = [sampler.choose(LOGITS) for _ in range(200)]
    assert len(set(tokens[50:])) == 1


def test_a_bias_of_100_decides_and_one_of_minus_100_forbids() -> None:
    best = int(LOGITS.argmax())
    assert drawn(500, logit_bias={best: -100})[best] == 0
    assert drawn(500, logit_bias={7: 100})[7] == 500


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


@each(
    ("name", "value"),
    [
        *(("temperature", value) for value in (math.nan, math.inf, -0.1, 1e300, 10**400)),
        *(("top_k", value) for value in (0, -1, 2.5)),
        *(("top_p", value) for value in (0, 0.0, 1.1, math.nan, -1, -1e-320)),
        *(("min_p", value) for value in (-0.1, 1.1, math.nan)),
        *(("repetition_penalty", value) for value in (0, -1, math.nan, math.inf, 1e-40, 1e-320, 1e40, 10**400)),
        *((name, value) for name in ("frequency_penalty", "presence_penalty") for value in (-2.1, 3, math.nan)),
        *(("seed", value) for value in (-1, 0.5, 2**64, -(10**400))),
    ],
)
def test_a_setting_that_makes_no_sense_says_what_would(name: str, value: float) -> None:
    with pytest.raises(UserError, match=re.escape(f"found {name} {value}, expected")) as error:
        Sampling(**{name: value})  # type: ignore[arg-type]
    assert error.value.exit_code == 2


@each(
    ("bias", "message"),
    [
        ({1: 101}, "found logit_bias[1] 101, expected a number from -100 to 100"),
        ({1: math.nan}, "found logit_bias[1] nan, expected a number from -100 to 100"),
        ({-1: 1}, "found -1 in logit_bias, expected a token id"),
        ({"a": 1}, "found 'a' in logit_bias, expected a token id"),
        ({1.5: 1}, "found 1.5 in logit_bias, expected a token id"),
        ([1], "found logit_bias [1], expected numbers by token id"),
    ],
)
def test_a_bias_that_makes_no_sense_says_what_would(bias: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        Sampling(logit_bias=bias)


@each(
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
        {"frequency_penalty": 2.0, "presence_penalty": -2.0},
        {"logit_bias": {0: 100, 1: -100}},
        {"seed": 2**64 - 1},
    ],
)
@each("scale", [1.0, 1e4, 1e30])
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
