"""How many tokens of prompts a pass takes, so that sequences that decode wait little."""

import pytest

from adaptive_lm.runtime.generation.prompt_limit import (
    BEGIN_TOKENS,
    LEAST_TOKENS,
    LONGEST_PASS,
    MOST_TOKENS,
    PromptLimit,
)


def measured(decoding: float, token: float, passes: int = 5) -> PromptLimit:
    """Return a limit that has seen passes of a machine on which they take exactly these times."""
    limit = PromptLimit()
    for _ in range(passes):
        limit.add(decoding, 0)
        limit.add(decoding + token * 40, 40)
    return limit


def test_a_pass_with_a_prompt_takes_as_long_as_stated() -> None:
    tokens = measured(decoding=8.0, token=0.2).tokens
    assert tokens == 60
    assert 8.0 + 0.2 * tokens == pytest.approx(8.0 * LONGEST_PASS)


def test_it_follows_the_machine() -> None:
    limit = measured(decoding=8.0, token=0.2)
    for _ in range(9):  # now only one sequence decodes, or the dial was lowered
        limit.add(5.0, 0)
    assert limit.tokens == 37


def test_one_disturbed_pass_does_not_move_it() -> None:
    limit = measured(decoding=8.0, token=0.2)
    limit.add(80.0, 0)
    limit.add(800.0, 40)
    assert limit.tokens == 60


def test_it_stays_within_its_limits() -> None:
    assert measured(decoding=1.0, token=1.0).tokens == LEAST_TOKENS
    assert measured(decoding=1.0, token=0.001).tokens == MOST_TOKENS
    assert measured(decoding=1.0, token=-0.01).tokens == MOST_TOKENS, "noise can make a token cost less than nothing"


def test_before_both_kinds_of_pass_were_measured_it_is_a_constant() -> None:
    limit = PromptLimit()
    assert limit.tokens == BEGIN_TOKENS
    limit.add(9.0, 40)  # compared with nothing
    assert limit.tokens == BEGIN_TOKENS
    limit.add(1.0, 0)
    assert limit.tokens == BEGIN_TOKENS
