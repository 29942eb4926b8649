"""Drafts by a lower setting of the dial: the slot is as before, and what does not pay is switched off."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from adaptive_lm.runtime.dial import Dial, Thresholds, resolve
from adaptive_lm.runtime.format.manifest import Manifest
from adaptive_lm.runtime.speculation.dial_drafter import (
    MAX_DRAFT,
    DialDrafter,
    Setting,
    Text,
    lower_settings,
)
from adaptive_lm.runtime.speculation.pass_costs import PassCosts

L = 2
VOCABULARY = 10
FULL, LOW = Thresholds.everything(L), replace(Thresholds.everything(L), router_top_p=np.full(L, 0.1, np.float32))


class Step:
    def __init__(self, token: int) -> None:
        self.logits: NDArray[np.float32] = np.eye(VOCABULARY, dtype=np.float32)[[token]]


class Counting:
    """A text whose next token is the last one plus 1; at the lower setting that is right in `share` of the cases."""

    def __init__(self, clock: list[float], share: float, low_cost: float) -> None:
        self.clock, self.share, self.low_cost = clock, share, low_cost
        self.thresholds, self.position, self.steps = FULL, 0, 0
        self.marked = -1
        self._draw = random.Random(0)

    def step(self, token: int) -> Step:
        assert self.thresholds is LOW
        self.clock[0] += self.low_cost
        self.position, self.steps = self.position + 1, self.steps + 1
        return Step((token + 1 if self._draw.random() < self.share else token) % VOCABULARY)

    def mark(self) -> None:
        self.marked = self.position

    def rewind(self, position: int) -> None:
        assert position == self.marked
        self.position = position


def best(logits: NDArray[np.float32]) -> int:
    return int(logits.argmax())


def decoded(text: Counting, drafter: DialDrafter, costs: PassCosts, tokens: int) -> tuple[float, list[int]]:
    """Return the seconds and the lengths of the drafts of decoding; a plain pass takes 1, each more row 0.3."""
    ids, lengths = [0], []
    while len(ids) <= tokens:
        draft = drafter.draft(ids, 100)
        assert text.thresholds is FULL
        assert text.position == len(ids) - 1
        right = [(ids[-1] + 1 + place) % VOCABULARY for place in range(len(draft) + 1)]
        accepted = next((place for place, token in enumerate(draft) if token != right[place]), len(draft))
        ids += right[: accepted + 1]
        text.position = len(ids) - 1
        seconds = 1 + 0.3 * len(draft)
        text.clock[0] += seconds
        costs.add(1 + len(draft), seconds)
        drafter.verified(len(draft), accepted, 1 + len(draft), seconds)
        lengths.append(len(draft))
    return text.clock[0], lengths


def plain_pass() -> PassCosts:
    costs = PassCosts()
    costs.add(1, 1.0)
    return costs


def race(share: float, low_cost: float) -> tuple[DialDrafter, float, list[int]]:
    clock, costs = [0.0], PassCosts()
    text = Counting(clock, share, low_cost)
    drafter = DialDrafter(text, [Setting("low", LOW)], costs, best, clock=lambda: clock[0])
    return drafter, *decoded(text, drafter, costs, 2000)


def test_a_cheap_setting_that_is_right_is_used_at_length() -> None:
    drafter, seconds, lengths = race(share=1.0, low_cost=0.1)
    assert seconds < 2000 / 1.8
    assert max(lengths) == MAX_DRAFT
    assert drafter.verdict() is None


@pytest.mark.parametrize(("share", "low_cost"), [(1.0, 0.9), (0.2, 0.1), (0.0, 0.0)])
def test_a_setting_that_does_not_pay_is_switched_off_and_the_verdict_says_why(share: float, low_cost: float) -> None:
    drafter, seconds, lengths = race(share, low_cost)
    assert seconds < 2000 / 0.98
    assert sum(map(bool, lengths)) < 2000 / 50
    verdict = drafter.verdict()
    assert verdict is not None
    assert "do not pay here" in verdict
    assert "low" in verdict


def test_without_room_nothing_is_drafted() -> None:
    text = Counting([0.0], 1.0, 0.1)
    assert DialDrafter(text, [Setting("low", LOW)], plain_pass(), best).draft([1], 0) == []
    assert text.steps == 0


def test_a_draft_that_fails_leaves_the_thresholds_as_they_were() -> None:
    class Failing(Counting):
        def step(self, token: int) -> Step:
            raise MemoryError

    text = Failing([0.0], 1.0, 0.1)
    with pytest.raises(MemoryError):
        DialDrafter(text, [Setting("low", LOW)], plain_pass(), best).draft([1], 3)
    assert text.thresholds is FULL


def test_a_model_without_a_lower_setting_says_so() -> None:
    text: Text = Counting([0.0], 1.0, 0.1)
    drafter = DialDrafter(text, [], plain_pass(), best)
    assert drafter.draft([1], 5) == []
    verdict = drafter.verdict()
    assert verdict is not None
    assert "no lower setting" in verdict


def test_every_exit_and_a_single_expert_are_settings(rich: Path) -> None:
    manifest = Manifest.read(rich)
    thresholds = resolve(manifest, Dial())
    settings = {one.name: one.thresholds for one in lower_settings(manifest, thresholds)}
    exits = [index for index, layer in enumerate(manifest.model.layers) if layer.exit]
    assert exits
    for layer in exits:
        leave = settings[f"leaving after layer {layer}"].exit_threshold
        assert leave[layer] == 0
        assert (np.delete(leave, layer) == 1).all()
    narrow = settings["one expert per layer"]
    assert (narrow.router_top_p < 1e-5).all()
    assert (narrow.depth_threshold == thresholds.depth_threshold).all()
