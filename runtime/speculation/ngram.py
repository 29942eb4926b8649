"""Drafts from the text itself: what followed the longest earlier occurrence of its end."""

from collections.abc import Sequence

from .acceptance import CLASS_BEGINS, CLASS_OF, NUM_CLASSES, Acceptance
from .guard import LOOK_SECONDS, WORTH_LOOKING, Guard
from .ngram_index import MAX_MATCH, NgramIndex
from .pass_costs import DISTURBED, MAX_ROWS, PassCosts, repeat_loss, repeat_seconds

MAX_DRAFT = 15
"""Tokens of a draft: with the one before them, a pass of 16 rows, as many as our operators block."""
MIN_GAIN = 1.05
"""How much faster a pass with a draft must promise to be: less than the error of the estimate is no gain."""
LEARNED = 128
"""Tokens of a prompt, its last ones, that teach how often guesses are right; it takes 0.2 ms."""
LEAST_SURPRISE = 0.5
"""A draft ends before a token that was itself mispredicted, such as a value in a record, if those repeat less often."""


class NgramDrafter:
    """Drafts what followed the longest earlier occurrence of the end of the text (prompt lookup, as LLMA 2304.04487).

    A draft has the length that promises the most tokens per second, by the measured shares of right predictions and the
    measured times of passes; where none promises more than plain decoding, there is no draft. Shares are learned
    without drafts too, from the tokens that come.

    Args:
        costs: Times of passes, shared by the texts of a session.
        repeats: Whether what was right of a draft is computed again where the rest was wrong; see `repeat_seconds`.
    """

    def __init__(self, costs: PassCosts, *, repeats: bool = False) -> None:
        self._costs, self._repeats = costs, repeats
        self._acceptance = Acceptance()
        self._index = NgramIndex()
        self._surprises = bytearray()  # for each token whether another one was predicted
        self._source, self._length = 0, 0  # where the predicted tokens are, and how many tokens agree before them
        self._plans: dict[int, Plan] = {}
        self._plan: Plan | None = None  # of the last draft
        self._guard = Guard()

    def draft(self, ids: Sequence[int], most: int, others: int = 0) -> list[int]:
        """Return the tokens that may follow, see `Drafter`."""
        if self._guard.resting:
            return []
        self._follow(ids)
        if not self._source:
            return []
        plan, curve = self._plans.get(others), self._costs.curve()
        if not curve:
            return []  # what a plain pass takes is not known yet
        if plan is None or plan.curve is not curve:
            plan = self._plans[others] = Plan(self._acceptance, curve, others, repeats=self._repeats)
        self._plan = plan
        count = min(plan.length(CLASS_OF[self._length]), most)
        if self._acceptance.surprise < LEAST_SURPRISE:
            surprise = self._surprises.find(True, self._source, self._source + count)
            if surprise >= 0:
                count = surprise - self._source
        if count <= 0:
            return []
        draft = list(ids[self._source : self._source + count])
        period = len(ids) - self._source
        while len(draft) < count:  # the end of the text repeats within the draft
            draft.append(draft[-period])
        return draft

    def verified(self, drafted: int, accepted: int, rows: int, seconds: float, again: int = 0) -> None:
        """Take note of a pass, see `Drafter`."""
        plan, gain = self._plan, -WORTH_LOOKING * LOOK_SECONDS / seconds
        if (
            drafted and plan and rows == plan.rows + drafted
        ):  # else other texts drafted too, and the time is theirs as well
            taken = min(seconds, DISTURBED * plan.curve[rows])
            gain += 1 + accepted / plan.rows - taken / plan.seconds
        elif again:
            gain -= repeat_loss(self._costs.curve(), rows, again, seconds)
        self._guard.count(gain)

    def verdict(self) -> None:
        """Return None: where a text does not repeat, there is nothing to say."""

    def _follow(self, ids: Sequence[int]) -> None:
        """Add the new tokens, each of which shows whether it was predicted, and find what predicts the next."""
        source, length, index, end = self._source, self._length, self._index, len(ids)
        begin = len(index)
        if end - begin > LEARNED:  # a prompt, or what came during a rest
            begin, source = end - LEARNED, 0
            index.extend(ids, begin)
            self._surprises.extend(bytes(begin - len(self._surprises)))
        for at in range(begin, end):
            if source:
                right = ids[source] == ids[at]
                self._acceptance.observe(length, right, surprise=self._surprises[source] > 0)
                self._surprises.append(not right)
                # What agreed and one more token is the longest match again: a longer one would have been one before.
                source, length = (source + 1, min(length + 1, MAX_MATCH)) if right else (0, 0)
            else:
                self._surprises.append(False)
            index.extend(ids, at + 1)
            if source == 0:
                source, length = index.longest_match(ids)
        self._source, self._length = source, length


class Plan:
    """How long a draft should be, by the class of its match: each length is computed when it is first asked for.

    Args:
        acceptance: Shares of right predictions.
        curve: Seconds of a pass by rows. The plan is good while that is the newest.
        others: Rows of other sequences in the pass, each of which gives a token.
        repeats: As in `NgramDrafter`.
    """

    def __init__(self, acceptance: Acceptance, curve: Sequence[float], others: int, *, repeats: bool = False) -> None:
        self.rows = others + 1
        """Rows of a pass without a draft."""
        self.seconds = curve[min(self.rows, MAX_ROWS)]
        """Time of that pass."""
        self.curve, self._acceptance, self._repeats = curve, acceptance, repeats
        self._lengths: list[int | None] = [None] * NUM_CLASSES

    def length(self, class_: int) -> int:
        """Return the length that promises the most tokens per second, 0 where none pays."""
        length = self._lengths[class_]
        if length is None:
            length = self._lengths[class_] = self._best_length(CLASS_BEGINS[class_])
        return length

    def _best_length(self, match: int) -> int:
        best, length = MIN_GAIN * self.rows / self.seconds, 0
        tokens, probability, again = float(self.rows), 1.0, 0.0
        for drafted, seconds in enumerate(self.curve[self.rows + 1 : self.rows + 1 + MAX_DRAFT], 1):
            share = self._acceptance.share(match + drafted - 1)
            if self._repeats:
                again += probability * (1 - share) * repeat_seconds(self.curve, self.rows, drafted)
            probability *= share
            tokens += probability
            if tokens > best * (seconds + again):
                best, length = tokens / (seconds + again), drafted
        return length
