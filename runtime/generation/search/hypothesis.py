"""The texts that a search found, the best first, and what the search cost."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...execution.usage.cost import Meter
from ...execution.usage.routes import Routes
from ..request import Request, Token

GATHERED = 64
"""Passes whose costs are computed together."""


@dataclass(frozen=True)
class Hypothesis:
    """One text, with its score."""

    tokens: Sequence[Token]
    logprob: float
    """Sum of the log-probabilities of its tokens, in nats: those of the model at temperature 1, without filters."""
    score: float
    """What the texts are ranked by, higher is better."""
    finish_reason: str | None
    """As in `Request`; None for a text that was still growing when the search was interrupted."""
    seed: int | None = None
    """The seed that it was drawn with; None in a beam search, which draws nothing."""

    @property
    def text(self) -> str:
        """The text, up to a stop string."""
        return "".join(token.text for token in self.tokens)


@dataclass
class Effort:
    """The compute of a search, that of texts which it dropped included. The prompt counts as its last token."""

    steps: int = 0
    """Passes."""
    tokens: int = 0
    """Tokens computed."""
    seconds: float = 0.0
    """Wall time, that of the prompt included."""
    _flops: float = 0.0
    _gathered: list[Routes] = field(default_factory=list)
    _meter: Meter | None = None

    def add(self, routes: Sequence[Routes], meter: Meter) -> None:
        """Count the tokens of a pass from which the next ones are chosen, each with its routes, at equal thresholds."""
        self.tokens += len(routes)
        self._gathered += routes
        self._meter = meter
        if len(self._gathered) >= GATHERED:
            self._sum()

    @property
    def executed_flops(self) -> float:
        """FLOPs that ran; a multiply-add is 2."""
        self._sum()
        return self._flops

    def _sum(self) -> None:
        if self._gathered and self._meter is not None:
            self._flops += self._meter.total(self._gathered).executed_flops
            self._gathered = []


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    request: Request
    """Prompt and settings, with the best text as what was generated."""
    hypotheses: Sequence[Hypothesis]
    """The texts, the best first; of equal scores, the one that was found first."""
    effort: Effort

    @property
    def best(self) -> Hypothesis:
        """The text with the highest score."""
        return self.hypotheses[0]

    @property
    def flops_ratio(self) -> float:
        """FLOPs of the search over those of the best text alone."""
        alone = sum(token.usage.executed_flops for token in self.best.tokens)
        return self.effort.executed_flops / alone if alone else 1.0
