"""Chooses the next token from the logits."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...contract.errors import WrongUsageError

FIRST_CANDIDATES = 256  # of top-p; four times as many until they hold the mass


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose; the filters act in this order, on what the one before left.

    repetition_penalty: logits of tokens already seen are divided (if above 0) or multiplied by it; 1 changes nothing.
        Source: Keskar et al. 2019 (arXiv 1909.05858), section 4.1.
    temperature: divides the logits; 0 takes the most probable token.
    top_k: keeps the k most probable tokens; None keeps all.
    top_p: keeps the fewest most probable tokens that hold this mass. Source: Holtzman et al. 2019 (arXiv 1904.09751).
    min_p: keeps tokens at least this times as probable as the first. Source: Nguyen et al. 2024 (arXiv 2407.01082).
    seed: of the random numbers; None draws one.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise WrongUsageError(f"found temperature {self.temperature}, expected a number of at least 0, such as 0.8")
        if self.top_k is not None and self.top_k < 1:
            raise WrongUsageError(f"found top_k {self.top_k}, expected at least 1; leave it out to keep all tokens")
        if not 0 < self.top_p <= 1:
            raise WrongUsageError(f"found top_p {self.top_p}, expected above 0 and at most 1; 1 keeps all tokens")
        if not 0 <= self.min_p <= 1:
            raise WrongUsageError(f"found min_p {self.min_p}, expected 0 to 1; 0 keeps all tokens")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise WrongUsageError(
                f"found repetition_penalty {self.repetition_penalty}, expected a number above 0; 1 changes nothing"
            )
        if self.seed is not None and self.seed < 0:
            raise WrongUsageError(f"found seed {self.seed}, expected a whole number of at least 0")


class Sampler:
    """Samples one sequence; the same seed and logits give the same tokens.

    vocab_size: tokens that exist; logits beyond are padding of the embedding and never chosen.
    """

    def __init__(self, sampling: Sampling, vocab_size: int, prompt: list[int]) -> None:
        self.sampling = sampling
        self.seed = sampling.seed if sampling.seed is not None else int(np.random.SeedSequence().generate_state(1)[0])
        self._random = np.random.default_rng(self.seed)
        self._seen = np.zeros(vocab_size, dtype=bool)
        self._seen[prompt] = True

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The next token from logits (V,). Raises ArithmeticError if they are not numbers."""
        scores = logits[: len(self._seen)]
        if self.sampling.repetition_penalty != 1:
            scores = self._penalised(scores)
        if self.sampling.temperature == 0:
            token = int(scores.argmax())
            best = scores[token]
        else:
            best = scores.max()
            token = self._drawn(scores, float(best)) if math.isfinite(best) else 0
        if not math.isfinite(best):
            raise ArithmeticError("the model gave logits that are not finite numbers")
        self._seen[token] = True
        return token

    def _penalised(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        penalty = np.float32(self.sampling.repetition_penalty)
        return np.where(self._seen, np.where(scores > 0, scores / penalty, scores * penalty), scores)

    def _drawn(self, scores: NDArray[np.float32], best: float) -> int:
        sampling = self.sampling
        # In float64, and from the best score down: a small temperature then gives 0, not an overflow.
        mass = np.exp((scores.astype(np.float64) - best) / sampling.temperature)  # (V,), 1 at the best
        ids: NDArray[np.intp] | None = None  # of what is left; None is all
        if sampling.top_k is not None and sampling.top_k < len(mass):
            ids = np.argpartition(mass, -sampling.top_k)[-sampling.top_k :]
            ids.sort()
            mass = mass[ids]
        if sampling.top_p < 1:
            kept = nucleus(mass, sampling.top_p)
            ids, mass = (kept if ids is None else ids[kept]), mass[kept]
        if sampling.min_p > 0:
            kept = np.flatnonzero(mass >= sampling.min_p * mass.max())
            ids, mass = (kept if ids is None else ids[kept]), mass[kept]
        cumulative = mass.cumsum()
        place = int(cumulative.searchsorted(self._random.random() * cumulative[-1], side="right"))
        place = min(place, len(mass) - 1)
        return place if ids is None else int(ids[place])


def nucleus(mass: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """Indices, rising, of the fewest largest entries of `mass` that hold `top_p` of its sum; at least one.

    Sorts only as many as it needs: a vocabulary of 32000 has a few hundred candidates.
    """
    wanted = top_p * mass.sum()
    count = min(FIRST_CANDIDATES, len(mass))
    while True:
        largest = np.argpartition(mass, -count)[-count:] if count < len(mass) else np.arange(len(mass))
        largest = largest[np.argsort(-mass[largest], kind="stable")]
        held = mass[largest].cumsum()
        if held[-1] >= wanted or count == len(mass):
            return np.sort(largest[: int(held.searchsorted(wanted)) + 1])
        count = min(4 * count, len(mass))
