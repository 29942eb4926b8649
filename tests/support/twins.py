"""Random changes of a batch, each sequence of which has a twin that is computed alone."""

from collections.abc import Callable

import numpy as np

from adaptive_lm.runtime import Sequence, Session, Thresholds, Work
from adaptive_lm.runtime.execution.batch import Batch

CONTEXT = 224


class Twins:
    """Texts that join a batch, are copied, computed and leave, in random order.

    Args:
        session: Computes the twins.
        at: From a mass of the experts to thresholds.
        seed: Of the order.
    """

    def __init__(self, session: Session, at: Callable[[float], Thresholds], seed: int) -> None:
        self.session, self.at = session, at
        self.random = np.random.default_rng(seed)
        self.batch: Batch = session.batch(4, CONTEXT)
        self.of: dict[Sequence, Sequence] = {}

    def change(self) -> None:
        """Let a text join, begin as a copy of another, or leave; or change nothing."""
        action = self.random.random()
        if self.batch.free and action < 0.3:
            if self.of and action < 0.15:
                origin = list(self.of)[self.random.integers(len(self.of))]
                position = max(origin.position - int(self.random.integers(20)), 0)
                if not origin.can_rewind(position):
                    return
                copy = self.batch.fork(origin, position)
                self.of[copy] = self.session.sequence(origin.thresholds, CONTEXT)
                if position:
                    self.of[copy].prefill(origin.ids[:position], 0)
            else:
                thresholds = self.at(float(self.random.choice([0.3, 0.6, 1.0])))
                self.of[self.batch.join(thresholds)] = self.session.sequence(thresholds, CONTEXT)
        elif self.of and action < 0.4:
            leaver = list(self.of)[self.random.integers(len(self.of))]
            self.batch.leave(leaver)
            del self.of[leaver]

    def work(self) -> list[Work]:
        """Return new tokens for some of the texts, in any order: none, one, a few or many for each."""
        size = self.session.manifest.model.tokenizer_size
        work = []
        for one in self.of:
            count = int(self.random.choice([0, 1, 1, 1, 4, 30, 70]))
            if 0 < count <= CONTEXT - one.position:
                ids = self.random.integers(size, size=count).tolist()
                work.append(Work(one, ids, int(self.random.integers(count + 1))))
        self.random.shuffle(work)  # type: ignore[arg-type]
        return work
