"""Drafts by the same model at a lower setting of its dial."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..dial import Thresholds
from ..format.manifest import Manifest
from .guard import Guard
from .pass_costs import MAX_ROWS, SAMPLES, PassCosts, quartile, repeat_loss, repeat_seconds

MIN_GAIN = 1.05
"""How much faster a draft must promise to be, as in `ngram`."""
MAX_DRAFT = 7
"""Tokens of a draft. Each costs a pass, so that long ones pay only where every token is right."""
TRIALS = 4
"""Drafts of one token by which each setting is judged; with half of them it may be used if it promises a gain."""
TRIAL_PASSES = 48
"""Passes from one trial to the next, so that trials cost at most 2 %."""
PLAIN_PASSES = 2
"""Passes without a draft after each plan: what drafts are compared with must be as new as they are."""
INITIAL_SHARE, INITIAL_WEIGHT = 0.75, 2
LONGEST_MEMORY = 40
"""Drafted tokens over which a share is averaged."""
PLAN_PASSES = 16
"""Passes after which a plan that pays is made again."""
FIRST_REST, LONGEST_REST = 256, 4096
"""Passes between two trials where no setting pays; each rest is twice as long as the one before."""


class Text(Protocol):
    """A sequence of a batch, as far as a draft needs it."""

    thresholds: Thresholds

    @property
    def position(self) -> int:
        """Number of tokens computed."""

    def step(self, token: int) -> Any:
        """Compute one token; the result has `logits`."""

    def mark(self) -> None:
        """Prepare to go back to this position."""

    def rewind(self, position: int) -> None:
        """Forget the tokens from a position on."""


@dataclass
class Setting:
    """A lower setting of the dial, and what was measured of it."""

    name: str
    thresholds: Thresholds
    share: float = INITIAL_SHARE
    """Share of its drafted tokens that were right, each given that those before it were."""
    trials: int = 0
    weight: int = INITIAL_WEIGHT

    def __post_init__(self) -> None:
        self.times: list[float] = []

    @property
    def seconds(self) -> float:
        """Time of a drafted token, likewise the lower quartile."""
        return quartile(self.times) if self.times else 0.0

    def observe(self, drafted: int, accepted: int) -> None:
        """Count a draft: the tokens that were right, and the first that was not."""
        self.trials += 1
        for right in [True] * accepted + [False] * (accepted < drafted):
            self.weight = min(self.weight + 1, LONGEST_MEMORY)
            self.share += (right - self.share) / self.weight

    def best_length(self, curve: Sequence[float], others: int, *, repeats: bool = False) -> tuple[float, int]:
        """Return the gain of the best length of draft over plain decoding, and that length; (1, 0) if none gains."""
        rows = others + 1
        plain = rows / curve[rows]
        best, length, tokens, probability, again = 1.0, 0, float(rows), 1.0, 0.0
        for drafted, seconds in enumerate(curve[rows + 1 : rows + 1 + MAX_DRAFT], 1):
            if repeats:
                again += probability * (1 - self.share) * repeat_seconds(curve, rows, drafted)
            probability *= self.share
            tokens += probability
            gain = tokens / (seconds + again + drafted * self.seconds) / plain
            if gain > best:
                best, length = gain, drafted
        return best, length


def lower_settings(manifest: Manifest, thresholds: Thresholds) -> list[Setting]:
    """Return the settings below `thresholds` that a model may draft with: leave at an exit, or run one expert."""
    layers = manifest.model.layers
    settings = []
    for layer in (index for index, one in enumerate(layers) if one.exit):
        leave = np.ones_like(thresholds.exit_threshold)
        leave[layer] = 0.0
        settings.append(Setting(f"leaving after layer {layer}", _replaced(thresholds, exit_threshold=leave)))
    if any(one.dials_experts for one in layers):
        narrow = np.full_like(thresholds.router_top_p, 1e-6)
        if (thresholds.router_top_p > narrow).any():
            fewest = "one expert" if all(one.least_experts for one in layers) else "fewest experts"
            settings.append(Setting(f"{fewest} per layer", _replaced(thresholds, router_top_p=narrow)))
    if manifest.curve is not None:
        least = manifest.curve.points[0]
        settings.append(Setting(f"compute {least.compute:.2g}", Thresholds.of(least.thresholds)))
    return settings


class DialDrafter:
    """Drafts with the model itself at a lower setting of its dial, in the slot of the text.

    Each setting is tried a few times, now and then; the one that promises most is used, at the length that promises
    most, and none where plain decoding is faster. The texts of a session share the settings and their measurements.

    Args:
        text: The sequence, which has computed all tokens but the last.
        settings: See `lower_settings`.
        costs: Times of passes, shared likewise.
        choose: Returns the token to draft from logits (V,).
        clock: Returns seconds.
        repeats: Whether what was right of a draft is computed again where the rest was wrong; see `repeat_seconds`.
    """

    def __init__(
        self,
        text: Text,
        settings: Sequence[Setting],
        costs: PassCosts,
        choose: Callable[[NDArray[np.float32]], int],
        clock: Callable[[], float] = time.perf_counter,
        *,
        repeats: bool = False,
    ) -> None:
        self._clock, self._repeats = clock, repeats
        self._text, self._settings, self._costs, self._choose = text, settings, costs, choose
        self._used: Setting | None = None
        self._length = self._left = 0
        self._pause, self._rest = PLAIN_PASSES, FIRST_REST
        self._trial, self._guard, self._spent = False, Guard(), 0.0

    def draft(self, ids: Sequence[int], most: int, others: int = 0) -> list[int]:
        """Return the tokens that may follow, see `Drafter`."""
        if self._guard.resting:
            return []
        if self._left == 0:
            self._plan(others)
        self._left -= 1
        length = min(self._length, most)
        if self._used is None or length < 1:
            return []
        setting, text = self._used, self._text
        position, thresholds = text.position, text.thresholds
        draft = [ids[-1]]
        begin = self._clock()
        text.mark()
        text.thresholds = setting.thresholds
        try:
            for _ in range(length):
                draft.append(self._choose(text.step(draft[-1]).logits[-1]))
            text.rewind(position)
        finally:
            text.thresholds = thresholds
        self._spent = self._clock() - begin
        setting.times.append(self._spent / length)
        del setting.times[:-SAMPLES]
        return draft[1:]

    def verified(self, drafted: int, accepted: int, rows: int, seconds: float, again: int = 0) -> None:
        """Take note of a pass, see `Drafter`."""
        gain, curve = 0.0, self._costs.curve()
        if drafted and self._used is not None:
            self._used.observe(drafted, accepted)
            if rows == 1 + drafted and not self._trial:  # else other texts were in the pass
                gain = 1 + accepted - (self._spent + seconds) / curve[1]
        elif again and not self._trial:
            gain = -repeat_loss(curve, rows, again, seconds)
        self._guard.count(gain)

    def verdict(self) -> str | None:
        """Return one line of why there are no drafts; None where they pay, or where that is not known yet."""
        if not self._settings:
            return "this model has no lower setting to draft with: it has no exits and no routed experts"
        curve = self._costs.curve()
        if not curve or not any(one.trials for one in self._settings):
            return None
        if not self._guard.resting and any(self._best(one, curve)[0] >= MIN_GAIN for one in self._settings):
            return None
        best = max(self._settings, key=lambda one: self._best(one, curve)[0])
        return (
            f"drafts by the dial do not pay here and are switched off: the best of {len(self._settings)} settings "
            f"({best.name}) takes {best.seconds / curve[1]:.2f} of a pass per token and is right for {best.share:.0%}; "
            f"checking two tokens takes {curve[2] / curve[1]:.2f} of a pass"
        )

    def _best(self, setting: Setting, curve: Sequence[float], others: int = 0) -> tuple[float, int]:
        return setting.best_length(curve, others, repeats=self._repeats)

    def _plan(self, others: int) -> None:
        """Choose the setting and the length of the next drafts, or nothing, and for how many passes that holds."""
        curve, used = self._costs.curve(), self._used
        self._used, self._length, self._left = None, 0, 1
        if not curve or not self._settings or others + 1 >= MAX_ROWS:
            return
        if used is not None:
            self._left = self._pause
            return
        tried = [one for one in self._settings if one.trials >= TRIALS // 2]
        plans = [(*self._best(one, curve, others), one) for one in tried]
        gain, length, best = max(plans, key=itemgetter(0), default=(0.0, 0, self._settings[0]))
        self._trial = gain < MIN_GAIN
        if not self._trial:
            self._used, self._length, self._left = best, length, PLAN_PASSES
            self._pause, self._rest = PLAIN_PASSES, FIRST_REST
            return
        least = min(self._settings, key=lambda one: one.trials)
        if least.trials < TRIALS:
            self._used, self._length, self._pause = least, 1, TRIAL_PASSES
        else:
            self._used, self._length, self._pause = best, 1, self._rest
            self._rest = min(2 * self._rest, LONGEST_REST)


def _replaced(thresholds: Thresholds, **changed: NDArray[np.float32]) -> Thresholds:
    return Thresholds(**{**vars(thresholds), **changed})
