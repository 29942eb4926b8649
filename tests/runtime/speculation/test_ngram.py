"""Drafts from the text itself: what they are, how long, and when there are none."""

import random
from collections.abc import Callable, Sequence

import pytest

from adaptive_lm.runtime.speculation.acceptance import TYPICAL, Acceptance
from adaptive_lm.runtime.speculation.guard import FIRST_REST, MOST_LOST, Guard
from adaptive_lm.runtime.speculation.ngram import MAX_DRAFT, NgramDrafter, Plan
from adaptive_lm.runtime.speculation.pass_costs import ENOUGH, MAX_ROWS, PassCosts

Cost = Callable[[int], float]


def cheap(rows: int) -> float:
    """Return the cost in a small model, where more rows take little longer."""
    return 1e-3 * (1 + 0.05 * (rows - 1))


def proportional(rows: int) -> float:
    """Return the cost where n rows take as long as n passes, so that no draft can pay."""
    return 1e-3 * rows


class Replay:
    """Lets a drafter guess a text that is known, and counts passes and their time."""

    def __init__(self, cost: Cost) -> None:
        self.cost, self.costs = cost, PassCosts()
        self.drafter = NgramDrafter(self.costs)
        self.passes = self.drafted = self.accepted = 0
        self.seconds = 0.0
        self.lengths: list[int] = []

    def run(self, text: Sequence[int], prompt: int = 1, most: int = 100, others: int = 0) -> "Replay":
        ids = list(text[:prompt])
        while len(ids) < len(text):
            draft = self.drafter.draft(ids, min(most, len(text) - len(ids) - 1), others)
            accepted = 0
            while accepted < len(draft) and draft[accepted] == text[len(ids) + accepted]:
                accepted += 1
            ids += text[len(ids) : len(ids) + accepted + 1]
            rows = others + 1 + len(draft)
            self.costs.add(rows, self.cost(rows))
            self.drafter.verified(len(draft), accepted, rows, self.cost(rows))
            self.passes, self.seconds = self.passes + 1, self.seconds + self.cost(rows)
            self.drafted, self.accepted = self.drafted + len(draft), self.accepted + accepted
            self.lengths.append(len(draft))
        return self


def noise(length: int, words: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(words) for _ in range(length)]


def test_a_text_that_repeats_needs_few_passes() -> None:
    sentence = noise(60, 1000)
    replay = Replay(cheap).run(sentence * 12, prompt=60)
    assert replay.passes < 11 * 60 / 8
    assert replay.accepted / replay.drafted > 0.95


def test_a_text_that_never_repeats_is_never_guessed() -> None:
    replay = Replay(cheap).run(list(range(2000)))
    assert replay.passes == 1999
    assert replay.drafted == 0


def test_the_shortest_period_is_continued_beyond_the_end_of_the_text() -> None:
    costs = PassCosts()
    for rows in (1, MAX_ROWS) * ENOUGH:
        costs.add(rows, cheap(rows))
    drafter = NgramDrafter(costs)
    assert drafter.draft([1, 2, 3] + [7, 8] * 10, 6) == [7, 8, 7, 8, 7, 8]


def test_a_draft_is_never_longer_than_there_is_room() -> None:
    sentence = noise(40, 1000)
    for most in (0, 1, 3):
        assert max(Replay(cheap).run(sentence * 8, most=most).lengths) == most
    assert max(Replay(cheap).run(sentence * 8).lengths) == MAX_DRAFT


def test_where_rows_cost_as_much_as_passes_nothing_is_lost() -> None:
    for seed in range(4):
        text = noise(6000, 12, seed)  # pairs recur all the time, and predict nothing
        replay = Replay(proportional).run(text)
        assert replay.seconds < 1.01 * proportional(1) * len(text)


@pytest.mark.parametrize("others", [1, 7])
def test_beside_other_texts_a_draft_pays_less(others: int) -> None:
    text = (noise(30, 50) + noise(5, 1000)) * 20
    alone, beside = Replay(lambda rows: 1e-3 * rows**0.7).run(text), Replay(lambda rows: 1e-3 * rows**0.7)
    beside.run(text, others=others)
    assert beside.drafted <= alone.drafted


def test_with_as_many_rows_as_are_measured_nothing_is_drafted() -> None:
    assert Replay(cheap).run(noise(30, 100) * 10, others=MAX_ROWS).drafted == 0


def test_a_draft_ends_before_a_value_that_was_another_one_in_each_record() -> None:
    frame = noise(12, 1000)
    values = noise(60, 5000, seed=1)
    text = [token for value in values for token in [*frame, value]]
    replay = Replay(lambda rows: 1e-3 * (1 + 0.3 * (rows - 1)))
    replay.run(text, prompt=130)
    assert replay.accepted / replay.drafted > 0.9
    assert replay.passes < 3.3 * (len(text) - 130) / (len(frame) + 1)


def test_the_share_of_right_predictions_is_learned_without_drafts() -> None:
    acceptance = Acceptance()
    for _ in range(200):
        acceptance.observe(2, False)
    assert acceptance.share(2) < 0.02
    assert acceptance.share(3) == TYPICAL[1]
    for _ in range(200):
        acceptance.observe(2, True)
    assert acceptance.share(2) > 0.98


def test_a_plan_takes_the_length_that_promises_most() -> None:
    acceptance = Acceptance()
    for _ in range(400):
        for length in range(2, 33):
            acceptance.observe(length, True)
    always = Plan(acceptance, [0.0, *(1 + 0.1 * n for n in range(MAX_ROWS))], 0)
    assert always.length(0) == MAX_DRAFT
    steep = [0.0, 1.0, 1.2, 1.4, *(9.0 + n for n in range(MAX_ROWS - 3))]
    assert Plan(acceptance, steep, 0).length(0) == 2
    assert Plan(acceptance, [0.0, *(float(n) for n in range(1, MAX_ROWS + 1))], 0).length(0) == 0


def test_a_guard_rests_after_losses_and_longer_each_time() -> None:
    guard = Guard()
    rests = []
    for _ in range(3):
        while not guard.resting:
            guard.count(-0.5)
        rests.append(0)
        while guard.resting:
            guard.count(-0.5)
            rests[-1] += 1
    assert rests == [FIRST_REST, 2 * FIRST_REST, 4 * FIRST_REST]


def test_a_guard_forgives_losses_that_gains_paid_for() -> None:
    guard = Guard()
    for _ in range(100):
        guard.count(2.0)
        guard.count(-MOST_LOST)
        guard.count(1.5)
    assert not guard.resting


def test_after_a_rest_the_text_in_between_is_known() -> None:
    replay = Replay(proportional)
    sentence = noise(50, 1000)
    replay.run(noise(3000, 6) + sentence * 2)  # losses, so that it rests
    replay.cost = cheap
    replay.run((noise(3000, 6) + sentence * 2) + sentence * 400, prompt=3100)
    assert replay.accepted > 50 * 100
