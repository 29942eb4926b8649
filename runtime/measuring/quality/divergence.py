"""How far models are from a reference on the same text: Kullback-Leibler divergence, and agreement of the choices.

n tokens that are scored in one pass, V tokens of the common vocabulary.

    kl          mean over the tokens of KL(reference || model) = sum over V of p (log p - log q), in nats, where p are
                the probabilities of the reference and q those of the model
    agreement   share of the tokens whose most probable successor is that of the reference
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...dial import Thresholds
from ...generation.engine import Engine
from .perplexity import Logits, Reader, Score, Window, longest, scored_rows

AT_A_TIME = 4
"""Points that read beside one reading of the reference; each has a cache of its own."""


class Point(NamedTuple):
    """A model at a point of its dial."""

    engine: Engine
    thresholds: Thresholds


@dataclass
class Divergence:
    """The distance of a point from the reference."""

    score: Score
    """Its own measurements."""
    nats: float = 0.0
    """KL divergence, summed over the tokens."""
    same: int = 0
    """Tokens with the reference's choice."""

    @property
    def kl(self) -> float:
        """Nats per token."""
        return self.nats / self.score.tokens

    @property
    def agreement(self) -> float:
        """Share of the tokens, 0 to 1."""
        return self.same / self.score.tokens


def diverge(reference: Point, points: Sequence[Point], texts: Sequence[Window]) -> list[Divergence]:
    """Read every window with the reference and at each point, in passes of the same tokens."""
    results: list[Divergence] = []
    for begin in range(0, len(points), AT_A_TIME):
        results += _beside(reference, points[begin : begin + AT_A_TIME], texts)
    return results


def _beside(reference: Point, points: Sequence[Point], texts: Sequence[Window]) -> list[Divergence]:
    everyone = [reference, *points]
    rows, capacity = min(scored_rows(one.engine) for one in everyone), longest(texts)
    judge, *readers = [Reader(*one, capacity, rows) for one in everyone]
    results = [Divergence(reader.score) for reader in readers]
    for window in texts:
        for passes in zip(judge.read(window), *(reader.read(window) for reader in readers), strict=True):
            true = log_softmax(passes[0])
            probabilities = np.exp(true)
            choices = passes[0].argmax(axis=1)
            for result, logits in zip(results, passes[1:], strict=True):
                each = (probabilities * (true - log_softmax(logits))).sum(axis=1, dtype=np.float64)
                result.nats += float(each.clip(min=0).sum())  # rounding may give less than 0
                result.same += int((logits.argmax(axis=1) == choices).sum())
    return results


def log_softmax(logits: Logits) -> Logits:
    """Return the natural logarithms of the probabilities (n, V); the sums are in float64."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, dtype=np.float64)
    result: Logits = shifted - np.log(total).astype(np.float32)[:, None]
    return result
