"""Compare the decisions and numbers of an exported graph with those of the torch model.

T tokens, V vocabulary. Decisions (experts, heads, windows, layers, exits) must be equal. A token whose score is closer
to its threshold than EPSILON is a near tie: it is counted, its decision may differ, and at most a share NEAR_TIES of
the tokens may be near ties. After a near tie that was decided the other way the sequences differ, so the rest of that
window is not compared; it is counted too.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..graph.builder import Array
from .passes import Pass

EPSILON = 1e-5
"""Margin below which a decision is a near tie."""
NEAR_TIES = 0.01
"""Largest share of near ties."""
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-4, "fp16": 1e-4, "int8": 1e-4, "int4": 1e-4}
"""Largest difference of a logit. int8 is compared with itself, a prompt with its single tokens: they are equal to the
last bit (docs/decisions/0006), since one that differed would soon move an activation by one of its 255 steps."""
HIDDEN_FACTOR = 10
"""Largest difference of a hidden state, in tolerances of a logit: a few of its numbers are many times the others, and
round more coarsely. Those of SmolLM2 (30 layers) differ by 0.8 tolerances."""
HALF_EPSILON = 5e-3
"""The margin of a near tie where products are in fp16, which has 11 bits."""
HALF_TOLERANCE = 1e-2
"""Largest difference of a logit there, between a prompt and its tokens: the last bit of a product may round apart."""

STATES_EPSILON = 3e-5
"""The margin of a near tie in a model with recurrent mixers."""
STATES_TOLERANCE = 1e-2
"""Largest difference of a logit there. These mixers divide each head by its own size; where that is almost 0, rounding
errors grow, and with them the logits of that token. So they do in torch: computed in float32, a few tokens in ten
thousand are 1e-3 of the spread from the result in float64 (docs/decisions/0048)."""
STATES_USUAL = 2e-4
"""Largest difference of a logit of the other tokens of such a model; a token with a larger one is an outlier."""
OUTLIERS = 0.01
"""Largest share of outliers."""


@dataclass
class Comparison:
    """The comparison of two computations of the same tokens."""

    epsilon: float = EPSILON
    """Margin below which a decision is a near tie."""
    capped: bool = True
    """Whether too many near ties make it fail. False for tokens that another comparison also judges: a few hundred of
    them are too few to estimate a share of 1 %."""
    tokens: int = 0
    """Tokens in all windows."""
    near_ties: int = 0
    """Tokens whose closest decision is a near tie."""
    flipped: int = 0
    """Near ties that were decided the other way."""
    not_compared: int = 0
    """Tokens after such a flip in their window."""
    wrong_decisions: int = 0
    """Tokens with a decision that differs and is no near tie."""
    largest_difference: float = 0.0
    """Largest difference of a logit, in units of the standard deviation of the window's logits where that is above
    1."""
    largest_hidden_difference: float | None = None
    """The same of a number of the hidden states; None where the graph does not give them."""
    outliers: int | None = None
    """Tokens with a logit that differs by more than STATES_USUAL; None in a model without recurrent mixers."""
    failures: list[str] = field(default_factory=list)
    """The first wrong decision of each window, for the user."""

    def passes(self, tolerance: float) -> bool:
        """Return whether decisions and logits agree within the tolerance."""
        few_ties = not self.capped or self.near_ties <= max(NEAR_TIES * self.tokens, 1)
        hidden = self.largest_hidden_difference or 0.0
        close = self.largest_difference <= tolerance and hidden <= HIDDEN_FACTOR * tolerance
        few_outliers = (self.outliers or 0) <= OUTLIERS * self.tokens
        return not self.wrong_decisions and few_ties and close and few_outliers and self.tokens > 0

    def report(self, tolerance: float) -> dict[str, Any]:
        """Return the figures for the manifest."""
        hidden = self.largest_hidden_difference
        of_hidden = {"largest_hidden_difference": hidden, "hidden_tolerance": HIDDEN_FACTOR * tolerance}
        return {
            "tokens": self.tokens,
            "near_ties": self.near_ties,
            "flipped_near_ties": self.flipped,
            "not_compared": self.not_compared,
            "wrong_decisions": self.wrong_decisions,
            "largest_logit_difference": self.largest_difference,
            "tolerance": tolerance,
            **({} if hidden is None else of_hidden),
            **({} if self.outliers is None else {"outliers": self.outliers}),
            "passed": self.passes(tolerance),
        }

    def line(self, name: str, tolerance: float) -> str:
        """Return one line for the user, which begins with the name of the comparison."""
        wrong, hidden = self.wrong_decisions, self.largest_hidden_difference
        decisions = "all decisions equal" if not wrong else f"decisions DIFFER for {wrong} tokens"
        return (
            f"{name}: {self.tokens} tokens, {decisions} ({self.near_ties} near ties, {self.flipped} "
            f"flipped), largest logit difference {self.largest_difference:.1e} (tolerance {tolerance:.0e})"
            + ("" if self.outliers is None else f", {self.outliers} outliers")
            + ("" if hidden is None else f", of hidden states {hidden:.1e} (tolerance {HIDDEN_FACTOR * tolerance:.0e})")
        )


def compare(into: Comparison, expected: Pass, actual: Pass) -> None:
    """Add a window to `into`. The margins are those of `expected`."""
    differs = expected.differs_from(actual)
    tie = expected.margins < into.epsilon
    end = len(differs)
    if differs.any():
        first = int(differs.argmax())
        end = first
        if tie[first]:
            into.flipped += 1
            into.not_compared += len(differs) - first - 1
        else:
            into.wrong_decisions += int(differs.sum())
            into.failures.append(f"token {first}: decisions differ at a margin of {expected.margins[first]:.2e}")
    into.tokens += len(differs)
    into.near_ties += int(tie.sum())
    if end:
        difference = largest_difference(expected.logits[:end], actual.logits[:end])
        into.largest_difference = max(into.largest_difference, difference)
        if into.outliers is not None:
            into.outliers += outliers(expected.logits[:end], actual.logits[:end])
        if actual.hidden.shape[1]:
            difference = largest_difference(expected.hidden[:end], actual.hidden[:end])
            into.largest_hidden_difference = max(into.largest_hidden_difference or 0.0, difference)


def largest_difference(expected: Array, actual: Array) -> float:
    """Return the largest difference in units of the standard deviation of `expected` where that is above 1."""
    differences = expected - actual
    difference = float(np.abs(differences, out=differences).max())
    return difference / max(1.0, float(expected.std())) if np.isfinite(difference) else float("inf")


def outliers(expected: Array, actual: Array) -> int:
    """Count the tokens with a logit that differs by more than STATES_USUAL."""
    differences = np.abs(expected - actual).max(1)
    return int((differences > STATES_USUAL * max(1.0, float(expected.std()))).sum())
